"""The frames of a video in presentation order: their timestamps, and the frames that a frame spec selects."""

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import numpy.typing as npt

from model.video.spec import FRAME_RULES, TIMED_RULES, FrameSpec, VideoError


@dataclass(frozen=True, kw_only=True, slots=True)
class Timeline:
    """The timestamps of all frames, in ticks of `time_base` seconds, and the frames at which decoding can start."""

    pts: npt.NDArray[np.int64]
    """[num_frames], strictly increasing."""
    keys: npt.NDArray[np.int64]
    """Numbers of key frames, increasing; a hint for seeking that may be wrong."""
    time_base: Fraction
    stated: bool = True
    """False if the file has no valid timestamps: then `pts` is invented, and frames must be counted."""
    whole: bool = True
    """False if the file ends before the last of these frames."""

    @property
    def num_frames(self) -> int:
        """Number of frames."""
        return len(self.pts)

    def timestamps(self) -> npt.NDArray[np.float64]:
        """Return the seconds [num_frames] after the first frame."""
        ticks = (self.pts - self.pts[0]).astype(np.float64)
        seconds: npt.NDArray[np.float64] = ticks * self.time_base.numerator / self.time_base.denominator
        return seconds

    def key_before(self, index: int) -> int:
        """Return the number of the last key frame up to `index`; 0 if none is known."""
        last = int(np.searchsorted(self.keys, index, side="right")) - 1
        return int(self.keys[last]) if last >= 0 else 0

    def number_of(self, pts: int | None) -> int | None:
        """Return the number of the frame with timestamp `pts`; None if there is none."""
        if pts is None:
            return None
        number = int(np.searchsorted(self.pts, pts))
        return number if number < len(self.pts) and self.pts[number] == pts else None

    def select(self, spec: FrameSpec) -> list[int]:
        """Return the frame numbers that `spec` selects: its rule applied to the frames within its interval.

        Raises:
            VideoError: `empty_interval`.
        """
        first, last = 0, self.num_frames
        if spec.start is not None or spec.end is not None:
            timestamps = self.timestamps()
            first = int(np.searchsorted(timestamps, spec.start or 0.0))
            last = last if spec.end is None else int(np.searchsorted(timestamps, spec.end))
        if first >= last:
            raise VideoError("empty_interval", "The video has no frame in the interval asked for.")
        if timed := TIMED_RULES.get(spec.rule):
            chosen = timed(self.pts[first:last] - self.pts[first], self.time_base, spec.count)
        else:
            chosen = FRAME_RULES[spec.rule](last - first, spec.count)
        return [first + index for index in chosen]


def from_rate(start: int, step: int, *, keys: Sequence[bool], time_base: Fraction, whole: bool) -> Timeline:
    """Make a timeline with a frame every `step` ticks; `keys` tells, in decoding order, which are key frames."""
    pts = start + step * np.arange(len(keys), dtype=np.int64)
    return Timeline(pts=pts, keys=np.flatnonzero(keys).astype(np.int64), time_base=time_base, whole=whole)


def from_packets(pts: Sequence[int | None], *, keys: Sequence[bool], time_base: Fraction) -> Timeline | None:
    """Make a timeline of the packets' timestamps; None if a timestamp is missing or repeated."""
    moments = [moment for moment in pts if moment is not None]
    ordered = np.unique(np.asarray(moments, np.int64))
    if len(ordered) != len(pts):
        return None
    key_moments = sorted(moment for moment, key in zip(moments, keys, strict=True) if key)
    keys_at = np.searchsorted(ordered, key_moments).astype(np.int64)
    return Timeline(pts=ordered, keys=keys_at, time_base=time_base)


def counted(num_frames: int, rate: Fraction | None) -> Timeline:
    """Make a timeline from the number of frames only, with a rate of `rate` per second, or 1 per second."""
    return Timeline(
        pts=np.arange(num_frames, dtype=np.int64),
        keys=np.zeros(1, np.int64),
        time_base=1 / (rate or Fraction(1)),
        stated=False,
    )

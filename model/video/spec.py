"""Frame specs and rules, limits, facts and errors of videos. Imports numpy only.

`model.video.reader` opens and decodes files.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from typing import Literal

import numpy as np
import numpy.typing as npt

MAX_FRAME_COUNT = 100
"""The most frames of any family: those of Video-ChatGPT and VTimeLLM."""
WINDOW_SECONDS = 2
"""Length of the windows in which ImageBind-LLM sees a video."""

VideoErrorCode = Literal[
    "not_a_video",
    "no_video_stream",
    "no_frames",
    "unsupported_codec",
    "undecodable",
    "too_large",
    "too_long",
    "empty_interval",
]


SOUND_ERRORS = {
    "no_audio_stream": "The file has no sound track.",
    "unsupported_audio": "The sound is encoded in a way, or has a rate or a number of channels, that is not supported.",
    "undecodable_audio": "A part of the sound that is needed is missing or damaged.",
    "audio_too_short": "The sound is shorter than a fortieth of a second, in the file or in the interval asked for.",
}
"""By code: why a video is used without its sound."""
SoundErrorCode = Literal["no_audio_stream", "unsupported_audio", "undecodable_audio", "audio_too_short"]


class SoundError(ValueError):
    """The sound of a file cannot be used; its pictures can. `code` is the reason."""

    def __init__(self, code: SoundErrorCode) -> None:
        super().__init__(SOUND_ERRORS[code])
        self.code: SoundErrorCode = code


class VideoError(ValueError):
    """The file cannot be used; `code` is the reason. The message never contains a library's text."""

    def __init__(self, code: VideoErrorCode, message: str) -> None:
        super().__init__(message)
        self.code: VideoErrorCode = code


class InvalidFrameSpec(ValueError):
    """A field of a frame spec is out of bounds; `param` names it."""

    def __init__(self, param: str, message: str) -> None:
        super().__init__(message)
        self.param = param


def videochat_indices(num_frames: int, count: int) -> list[int]:
    """Select frames by VideoChat's rule (`Chat.get_index`): truncate the start, round the steps half to even.

    This is not the usual middle of each segment. If there are fewer frames than `count`, frames repeat.
    """
    segment = float(num_frames - 1) / count
    start = int(segment / 2)
    return [start + int(np.round(segment * step)) for step in range(count)]


def video_chatgpt_indices(num_frames: int, count: int) -> list[int]:
    """Select frames by Video-ChatGPT's rule (`get_seq_frames`): the middle of each segment, ends rounded half to even.

    If there are fewer frames than `count`, the result has as many as there are. Some of them still repeat, and the last
    frame is selected only if it is the only one.
    """
    count = min(num_frames, count)
    segment = float(num_frames - 1) / count
    ends = [int(np.round(segment * step)) for step in range(count + 1)]
    return [(start + end) // 2 for start, end in pairwise(ends)]


def linspace_indices(num_frames: int, count: int) -> list[int]:
    """Select frames from the first to the last in equal steps, truncated to integers (Video-LLaVA, VTimeLLM).

    If there are fewer frames than `count`, frames repeat.
    """
    return [int(place) for place in np.linspace(0, num_frames - 1, count, dtype=int)]


def left_edge_indices(num_frames: int, count: int) -> list[int]:
    """Select the first frame of each of `count` segments, truncated to integers (`np.arange`, Video-LLaVA -hf).

    If there are fewer frames than `count`, frames repeat.
    """
    places = np.arange(0, num_frames, num_frames / count).astype(int)
    return [int(place) for place in places[:count]]  # rounding may add a step that begins at the end


def distinct_left_edge_indices(num_frames: int, count: int) -> list[int]:
    """Select frames as `left_edge_indices`, but each frame of a shorter video once (Video-LLaMA)."""
    return left_edge_indices(num_frames, min(num_frames, count))


FRAME_RULES: Mapping[str, Callable[[int, int], list[int]]] = {
    "videochat": videochat_indices,
    "video-chatgpt": video_chatgpt_indices,
    "linspace": linspace_indices,
    "left-edges": left_edge_indices,
    "distinct-left-edges": distinct_left_edge_indices,
}
"""Frame rules by name: (num_frames, count) -> 1 to `count` frame numbers below `num_frames`, never decreasing.

Most rules always return `count` numbers.
"""


def window_indices(ticks: npt.NDArray[np.int64], time_base: Fraction, count: int) -> list[int]:
    """Select the first and the last frame of each of `count / 2` windows of two seconds (ImageBind-LLM).

    The windows are evenly distributed: the first begins with the video and the last ends with it. They overlap in a
    video of less than `count` seconds, and are the same in one of less than two, so numbers can go back. All times are
    exact fractions. A window between two distant frames has the one that is shown during it.

    Args:
        ticks: [num_frames], of the frames after the first one.
        time_base: seconds of a tick.
        count: an even number of frames.
    """
    num_windows = count // 2
    assert num_windows and count % 2 == 0, "windows have two frames each"
    mean_ticks = Fraction(int(ticks[-1]), max(len(ticks) - 1, 1))  # of a frame; the last one lasts as long
    latest = max((int(ticks[-1]) + mean_ticks) * time_base - WINDOW_SECONDS, Fraction(0))
    indices = []
    for number in range(num_windows):
        start = latest * number / max(num_windows - 1, 1)
        low, high = (math.ceil(each / time_base) for each in (start, start + WINDOW_SECONDS))
        first, last = np.searchsorted(ticks, low), np.searchsorted(ticks, high) - 1
        indices += [int(min(first, last)), int(last)]
    return indices


TIMED_RULES: Mapping[str, Callable[[npt.NDArray[np.int64], Fraction, int], list[int]]] = {"windows": window_indices}
"""Frame rules by name that depend on timestamps, not only on the number of frames."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FrameSpec:
    """Selects frames of a video: up to `count` of those from second `start` on and before second `end`.

    Raises:
        InvalidFrameSpec: a field is not finite, out of bounds, or an unknown rule.
    """

    count: int = 8
    start: float | None = None
    end: float | None = None
    rule: str = "videochat"

    def __post_init__(self) -> None:
        if not 1 <= self.count <= MAX_FRAME_COUNT:
            raise InvalidFrameSpec("count", f"count must be between 1 and {MAX_FRAME_COUNT}.")
        for param, value in (("start", self.start), ("end", self.end)):
            if value is not None and not (math.isfinite(value) and value >= 0):
                raise InvalidFrameSpec(param, f"{param} must be a number of seconds, zero or more.")
        if self.start is not None and self.end is not None and self.start >= self.end:
            raise InvalidFrameSpec("end", "end must be later than start.")
        rules = (*FRAME_RULES, *TIMED_RULES)
        if self.rule not in rules:
            raise InvalidFrameSpec("rule", f"rule must be one of: {', '.join(rules)}.")


@dataclass(frozen=True, kw_only=True, slots=True)
class VideoLimits:
    """Limits of videos, checked before memory is allocated. Sides and pixels are those of the stored picture."""

    max_side: int = 8192
    max_pixels: int = 4096 * 2304
    max_frames: int = 2_000_000
    max_duration: float = 4 * 3600.0
    """Seconds."""


@dataclass(frozen=True, kw_only=True, slots=True)
class VideoFacts:
    """Facts about a file: duration in seconds, size as displayed, average frame rate, and rotation."""

    duration: float
    width: int
    height: int
    fps: float
    num_frames: int
    codec: str
    rotation: int
    """Degrees counterclockwise from the stored to the displayed picture: 0, 90, 180 or 270."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SoundFacts:
    """Facts about the sound track of a file."""

    codec: str
    rate: int
    """Samples per second."""
    channels: int


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Frame:
    """One decoded frame: its index in presentation order, its seconds after the first frame, and its pixels."""

    index: int
    timestamp: float
    rgb: npt.NDArray[np.uint8]
    """uint8 [height, width, 3], rotated as displayed."""
    scaled: npt.NDArray[np.uint8] | None = None
    """The same picture as FFmpeg's scaler makes it from the decoded planes, uint8 [size, size, 3], if asked for."""

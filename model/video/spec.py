"""Videos as the models see them: which frames, at which moments, within which limits. No torch.

A file is opened by `model.video.reader`; the words here cost numpy alone.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np
import numpy.typing as npt

MAX_FRAME_COUNT = 100
"""As many as any family was made for: Video-ChatGPT's."""

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


class VideoError(ValueError):
    """The file cannot be used; `code` says why, and the message is ours, never a library's."""

    def __init__(self, code: VideoErrorCode, message: str) -> None:
        super().__init__(message)
        self.code: VideoErrorCode = code


class InvalidFrameSpec(ValueError):
    """A field of a frame spec is out of its bounds; `param` names it."""

    def __init__(self, param: str, message: str) -> None:
        super().__init__(message)
        self.param = param


def videochat_indices(num_frames: int, count: int) -> list[int]:
    """VideoChat's rule (`Chat.get_index`): the start is truncated, the steps are rounded half to even.

    Not the usual middle of each segment. With fewer frames than asked for, frames repeat.
    """
    segment = float(num_frames - 1) / count
    start = int(segment / 2)
    return [start + int(np.round(segment * step)) for step in range(count)]


def video_chatgpt_indices(num_frames: int, count: int) -> list[int]:
    """Video-ChatGPT's rule (`get_seq_frames`): the middle of each segment, whose ends are rounded half to even.

    With fewer frames than asked for, as many as there are; even so some repeat, and the last is never taken
    but where it is the only one.
    """
    count = min(num_frames, count)
    segment = float(num_frames - 1) / count
    ends = [int(np.round(segment * step)) for step in range(count + 1)]
    return [(start + end) // 2 for start, end in pairwise(ends)]


FRAME_RULES: Mapping[str, Callable[[int, int], list[int]]] = {
    "videochat": videochat_indices,
    "video-chatgpt": video_chatgpt_indices,
}
"""Frame rules by name: (num_frames, count) -> frame numbers under `num_frames`, never decreasing.

Between 1 and `count` of them; most rules give `count` always.
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class FrameSpec:
    """Which frames of a video to take: up to `count` of those shown from `start` on and before `end`, in seconds.

    Raises:
        InvalidFrameSpec: a field is not finite, out of bounds, or names no rule.
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
        if self.rule not in FRAME_RULES:
            raise InvalidFrameSpec("rule", f"rule must be one of: {', '.join(FRAME_RULES)}.")


@dataclass(frozen=True, kw_only=True, slots=True)
class VideoLimits:
    """What is refused before memory is spent on it. Sides and pixels are those of the stored picture."""

    max_side: int = 8192
    max_pixels: int = 4096 * 2304
    max_frames: int = 2_000_000
    max_duration: float = 4 * 3600.0
    """Seconds."""


@dataclass(frozen=True, kw_only=True, slots=True)
class VideoFacts:
    """What a file is: seconds, pixels as displayed, average frame rate, and how far pictures are turned."""

    duration: float
    width: int
    height: int
    fps: float
    num_frames: int
    codec: str
    rotation: int
    """Degrees counterclockwise from the stored to the displayed picture: 0, 90, 180 or 270."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Frame:
    """One picture: its number in order of presentation, its seconds after the first one, and its pixels."""

    index: int
    timestamp: float
    rgb: npt.NDArray[np.uint8]
    """uint8 [height, width, 3], the right way up."""

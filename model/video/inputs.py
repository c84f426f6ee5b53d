"""What a model takes of a clip: frames, the counts of them that are allowed, pixels, sound. Imports numpy only."""

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

import numpy as np
import numpy.typing as npt

from model.video.pixels import Levels, PixelSpec
from model.video.spec import MAX_FRAME_COUNT, FrameSpec, InvalidFrameSpec


@dataclass(frozen=True, kw_only=True, slots=True)
class SoundSpec:
    """The stretches of a sound track that a model hears: `count` of them, each `seconds` long, evenly distributed.

    `left-edges` divides the time that is left beside one stretch by `count`, so the end of a track is not heard
    (pytorchvideo 0.1.5). `end-points` divides it by `count - 1`, so the last stretch ends with the track (since then).
    """

    count: int
    seconds: int = 2
    rate: int = 16_000
    """Samples per second; a track with another rate is resampled."""
    rule: Literal["left-edges", "end-points"] = "left-edges"

    @property
    def max_samples(self) -> int:
        """Samples of a stretch; a shorter track gives shorter ones."""
        return self.seconds * self.rate

    def starts(self, num_samples: int) -> list[int]:
        """Return the first sample of each stretch of a track with `num_samples` samples at `rate`.

        The duration is a float, as in the published code, and what is computed from it are exact fractions: as floats,
        a start would be one sample off for some durations.
        """
        latest = Fraction(max(num_samples / self.rate - self.seconds, 0.0))
        steps = self.count if self.rule == "left-edges" else max(self.count - 1, 1)
        return [math.floor(latest * place / steps * self.rate) for place in range(self.count)]


@dataclass(frozen=True, slots=True, eq=False)
class ClipInputs:
    """The input of an encoder for one clip, before normalisation."""

    frames: Levels
    """Levels [T * crops, S, S, 3]."""
    sound: npt.NDArray[np.float32] | None = None
    """The stretches of the sound track [count, samples] from -1 to 1; None for a clip without one that can be used."""


@dataclass(frozen=True, kw_only=True, slots=True)
class InputSpec:
    """The input of a model's encoder for one clip.

    Raises:
        InvalidFrameSpec: the count of `frames` is not from `min_frames` to `max_frames`.
    """

    frames: FrameSpec
    pixels: PixelSpec
    min_frames: int = 1
    max_frames: int = MAX_FRAME_COUNT
    """The counts of frames that the encoder can take. Some have an embedding for each of a fixed number of frames."""
    sound: SoundSpec | None = None
    """What the encoder hears; None for a model, or a session, without sound."""

    def __post_init__(self) -> None:
        if not self.min_frames <= self.frames.count <= self.max_frames:
            raise InvalidFrameSpec("count", self.refusal)

    @property
    def scaled_to(self) -> int | None:
        """The size of the squares that FFmpeg's scaler makes; None if the frames are resized by another one."""
        return self.pixels.size if self.pixels.fit == "decoder" else None

    @property
    def refusal(self) -> str:
        """The sentence that refuses a count of frames."""
        if self.min_frames == self.max_frames:
            return f"This model takes exactly {self.max_frames} frames of a video."
        return f"This model takes {self.min_frames} to {self.max_frames} frames of a video."

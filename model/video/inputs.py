"""What a model takes of a clip: which frames, how many of them are allowed, and their pixels. Imports numpy only."""

from dataclasses import dataclass

from model.video.pixels import PixelSpec
from model.video.spec import MAX_FRAME_COUNT, FrameSpec, InvalidFrameSpec


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

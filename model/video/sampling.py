"""Decodes the frames of a file that a model takes, and resizes them, in one process. Imports PyAV."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from model.video.inputs import InputSpec
from model.video.pixels import Levels, squares
from model.video.reader import open_video
from model.video.spec import VideoFacts, VideoLimits


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class SampledClip:
    """The facts of a file and its sampled frames."""

    facts: VideoFacts
    indices: tuple[int, ...]
    frames: Levels
    """Levels [T * crops, S, S, 3], resized but not normalised."""


def sample_clip(path: Path, inputs: InputSpec, limits: VideoLimits | None = None) -> SampledClip:
    """Decode and resize the frames of a video file that `inputs` selects.

    Raises:
        VideoError: the file cannot be decoded, or exceeds the limits.
    """
    with open_video(path, limits or VideoLimits()) as video:
        shown = list(video.frames(inputs.frames, scaled_to=inputs.scaled_to))
        facts = video.facts
    return SampledClip(
        facts=facts,
        indices=tuple(frame.index for frame in shown),
        frames=np.concatenate([squares(frame, inputs.pixels) for frame in shown]),
    )

"""Decodes the frames of a file that a model takes, and resizes them, in one process. Imports PyAV."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from model.video.container import VideoFile
from model.video.inputs import ClipInputs, InputSpec
from model.video.pixels import squares
from model.video.reader import read_video
from model.video.sound import read_sound
from model.video.spec import SoundErrorCode, VideoFacts, VideoLimits


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class SampledClip:
    """The facts of a file, its sampled frames, and its sound if the model hears."""

    facts: VideoFacts
    indices: tuple[int, ...]
    inputs: ClipInputs
    sound_error: SoundErrorCode | None = None
    """Why there is no sound, for a model that hears."""


def sample_clip(path: Path, inputs: InputSpec, limits: VideoLimits | None = None) -> SampledClip:
    """Decode the frames and the sound of a video file that `inputs` selects, and resize and resample them.

    Raises:
        VideoError: the file cannot be decoded, or exceeds the limits.
    """
    limits = limits or VideoLimits()
    with VideoFile(path) as file:
        with read_video(file, limits) as video:
            shown = list(video.frames(inputs.frames, scaled_to=inputs.scaled_to))
            facts, start = video.facts, video.start
        sound, error = read_sound(file, inputs, limits, video_start=start)
    frames = np.concatenate([squares(frame, inputs.pixels) for frame in shown])
    return SampledClip(
        facts=facts,
        indices=tuple(frame.index for frame in shown),
        inputs=ClipInputs(frames, sound),
        sound_error=error,
    )

"""The first stages of a reference with a video file: the numbers of its frames, and statistics of their pixels."""

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from model.checkpoints.json_object import read_object
from model.text.conversation import Clip
from model.verification.stage import Claim, Finding, Stage


def frame_findings(clip: Clip, pixel_values: Tensor, folder: Path) -> Iterator[Finding]:
    """Yield `clip.indices`, to compare with `clip.json`, and the stage `video_stats` [2, T, 3].

    Args:
        clip: the sampled frames.
        pixel_values: their pixels, [1, T, 3, S, S]; `video_stats` has mean and deviation by frame and channel.
        folder: of the reference.
    """
    path = folder / "clip.json"
    expected = read_object(path) if path.is_file() else {}
    yield Claim(name="clip.indices", got=list(clip.frame_indices), expected=expected.get("indices"))
    by_channel = pixel_values[0].flatten(2)  # [T, 3, S * S]
    yield Stage(name="video_stats", tensor=torch.stack((by_channel.mean(-1), by_channel.std(-1))))

"""Encodes several clips in one batch; a clip that cannot be encoded does not fail the others."""

import traceback
from collections.abc import Sequence

import numpy as np
import torch

from model.family import Family
from model.features import Features
from model.video.pixels import Levels, normalize


def encode_clips(family: Family, clips: Sequence[Levels]) -> list[Features | None]:
    """Encode clips of one shape, each [T, S, S, 3], in one call; the result is None for a clip that cannot be encoded.

    A clip's features are the same as in a batch of one, up to the order of additions: matrix products of other sizes
    are split into other tiles.
    """
    try:
        features = _encode(family, clips)
    except Exception:  # noqa: BLE001  retry each clip alone, so that one bad clip cannot fail the batch
        if len(clips) == 1:
            traceback.print_exc()
            return [None]
        return [encode_clips(family, [clip])[0] for clip in clips]
    return [each if all(np.isfinite(part).all() for part in each.values()) else None for each in features]


def _encode(family: Family, clips: Sequence[Levels]) -> list[Features]:
    """Return the features of each clip."""
    assert family.inputs is not None, "the model sees videos"
    pixels = family.inputs.pixels
    pixel_values = np.stack([normalize(clip, pixels) for clip in clips])  # [B, T, 3, S, S]
    with torch.inference_mode():
        encoded = family.encode(torch.from_numpy(pixel_values))
        parts = {name: part.to("cpu", torch.float16).numpy() for name, part in encoded.items()}
    return [{name: part[number] for name, part in parts.items()} for number in range(len(clips))]

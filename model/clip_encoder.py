"""Encodes several clips in one batch; a clip that cannot be encoded does not fail the others."""

import traceback
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from model.family import Family
from model.video.pixels import normalize

Frames = npt.NDArray[np.uint8]
"""One clip, [T, S, S, 3]."""
Features = npt.NDArray[np.float16]
"""The features of one clip, [num_tokens, width]."""


def encode_clips(family: Family, clips: Sequence[Frames]) -> list[Features | None]:
    """Encode clips of one shape in one call of the encoder; the result is None for a clip that cannot be encoded.

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
    return [each if np.isfinite(each).all() else None for each in features]


def _encode(family: Family, clips: Sequence[Frames]) -> Features:
    """Return features [B, num_tokens, width]."""
    pixel_values = np.stack([normalize(clip, family.pixel_spec) for clip in clips])  # [B, T, 3, S, S]
    with torch.inference_mode():
        features: Features = family.encode(torch.from_numpy(pixel_values)).to("cpu", torch.float16).numpy()
    return features

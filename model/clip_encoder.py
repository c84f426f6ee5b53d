"""Encodes several clips in one batch; a clip that cannot be encoded does not fail the others."""

import traceback
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from model.family import Family
from model.features import Features
from model.sound import mel_spectrograms
from model.video.inputs import ClipInputs, InputSpec
from model.video.pixels import normalize


def encode_clips(family: Family, clips: Sequence[ClipInputs]) -> list[Features | None]:
    """Encode clips of one shape in one call; the result is None for a clip that cannot be encoded.

    Either all clips have sound or none has.

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


def _encode(family: Family, clips: Sequence[ClipInputs]) -> list[Features]:
    """Return the features of each clip."""
    assert family.inputs is not None, "the model sees videos"
    pixels = family.inputs.pixels
    pixel_values = np.stack([normalize(clip.frames, pixels) for clip in clips])  # [B, T, 3, S, S]
    mel = _mel(family.inputs, clips)
    with torch.inference_mode():
        if mel is None:
            encoded = family.encode(torch.from_numpy(pixel_values))
        else:
            encoded = family.encode(torch.from_numpy(pixel_values), torch.from_numpy(mel))
        parts = {name: part.to("cpu", torch.float16).numpy() for name, part in encoded.items()}
    return [{name: part[number] for name, part in parts.items()} for number in range(len(clips))]


def _mel(inputs: InputSpec, clips: Sequence[ClipInputs]) -> npt.NDArray[np.float32] | None:
    """Return the mel spectrograms [B, count, 1, bins, steps]; None if the clips have no sound."""
    sounds = [clip.sound for clip in clips if clip.sound is not None]
    if inputs.sound is None or not sounds:
        return None
    assert len(sounds) == len(clips), "all clips of a batch have sound"
    return np.stack([mel_spectrograms(sound, inputs.sound) for sound in sounds])

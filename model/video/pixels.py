"""Resizes, crops and normalises pictures for an encoder, with numpy and Pillow, without torch.

The result is bit-exact with the published preprocessing: torchvision's Resize and CenterCrop on a PIL image (Pillow's
antialiased bicubic on uint8), or torch's `interpolate` with nearest pixels.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
from PIL import Image

PREPROCESSING_VERSION = 1
"""Part of the fingerprint of cached features; raise it with every change that alters a pixel."""

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True, kw_only=True, slots=True)
class PixelSpec:
    """Geometry and normalisation: a square of `size` pixels, and the mean and standard deviation of each channel.

    `crop` takes the middle square; `squash` changes the aspect ratio; `nearest` does so without smoothing, by choosing
    pixels.
    """

    size: int = 224
    fit: Literal["crop", "squash", "nearest"] = "crop"
    mean: tuple[float, float, float] = CLIP_MEAN
    std: tuple[float, float, float] = CLIP_STD


def resized_size(width: int, height: int, size: int) -> tuple[int, int]:
    """Return (width, height) with a short side of `size`; the long side is truncated to an integer, not rounded."""
    if width <= height:
        return size, int(size * height / width)
    return int(size * width / height), size


def crop_corner(width: int, height: int, size: int) -> tuple[int, int]:
    """Return (left, top) of the middle `size` x `size` pixels; halves are rounded to even."""
    return round((width - size) / 2.0), round((height - size) / 2.0)


def nearest_indices(length: int, size: int) -> npt.NDArray[np.int64]:
    """Return the indices [size] of the nearest pixels out of `length`; computed in float32, like torch."""
    scale = np.float32(length) / np.float32(size)
    return np.minimum((np.arange(size, dtype=np.float32) * scale).astype(np.int64), length - 1)


def resize(rgb: npt.NDArray[np.uint8], spec: PixelSpec) -> npt.NDArray[np.uint8]:
    """Resize uint8 [H, W, 3] to uint8 [size, size, 3]."""
    if spec.fit == "nearest":
        return rgb[np.ix_(*(nearest_indices(length, spec.size) for length in rgb.shape[:2]))]
    picture = Image.fromarray(rgb)
    if spec.fit == "squash":
        return np.asarray(picture.resize((spec.size, spec.size), Image.Resampling.BICUBIC))
    width, height = resized_size(picture.width, picture.height, spec.size)
    left, top = crop_corner(width, height, spec.size)
    resized = picture.resize((width, height), Image.Resampling.BICUBIC)
    return np.asarray(resized.crop((left, top, left + spec.size, top + spec.size)))


def normalize(frames: npt.NDArray[np.uint8], spec: PixelSpec) -> npt.NDArray[np.float32]:
    """Normalise uint8 [T, S, S, 3] to float32 [T, 3, S, S]: scale to 0..1, subtract mean, divide by deviation."""
    scaled = frames.transpose(0, 3, 1, 2).astype(np.float32) / np.float32(255)  # [T, 3, S, S]
    mean = np.asarray(spec.mean, np.float32).reshape(1, 3, 1, 1)
    std = np.asarray(spec.std, np.float32).reshape(1, 3, 1, 1)
    return np.ascontiguousarray((scaled - mean) / std)

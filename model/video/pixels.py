"""From a picture to what an encoder wants: resize, crop, normalise. numpy and Pillow; no torch.

Bit-exact with the published preprocessing: torchvision's Resize and CenterCrop on a PIL image, that is Pillow's
antialiased bicubic on uint8; or torch's `interpolate` by nearest pixels.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
from PIL import Image

PREPROCESSING_VERSION = 1
"""Part of the fingerprint of cached features: raise it with every change that alters a pixel."""

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True, kw_only=True, slots=True)
class PixelSpec:
    """A square of `size` pixels, cropped from the middle or squashed; each channel's mean and deviation.

    `nearest` squashes too, and smooths nothing: each pixel of the square is one of the picture's.
    """

    size: int = 224
    fit: Literal["crop", "squash", "nearest"] = "crop"
    mean: tuple[float, float, float] = CLIP_MEAN
    std: tuple[float, float, float] = CLIP_STD


def resized_size(width: int, height: int, size: int) -> tuple[int, int]:
    """(width, height) once the short side is `size`; the long side is cut to a whole number, not rounded."""
    if width <= height:
        return size, int(size * height / width)
    return int(size * width / height), size


def crop_corner(width: int, height: int, size: int) -> tuple[int, int]:
    """(left, top) of the middle `size` x `size` pixels; halves go to the even number."""
    return round((width - size) / 2.0), round((height - size) / 2.0)


def nearest_places(length: int, size: int) -> npt.NDArray[np.int64]:
    """Which of `length` pixels in a row each of `size` shows, [size]; in float32, as torch computes it."""
    scale = np.float32(length) / np.float32(size)
    return np.minimum((np.arange(size, dtype=np.float32) * scale).astype(np.int64), length - 1)


def resize(rgb: npt.NDArray[np.uint8], spec: PixelSpec) -> npt.NDArray[np.uint8]:
    """uint8 [H, W, 3] to uint8 [size, size, 3]."""
    if spec.fit == "nearest":
        return rgb[np.ix_(*(nearest_places(length, spec.size) for length in rgb.shape[:2]))]
    picture = Image.fromarray(rgb)
    if spec.fit == "squash":
        return np.asarray(picture.resize((spec.size, spec.size), Image.Resampling.BICUBIC))
    width, height = resized_size(picture.width, picture.height, spec.size)
    left, top = crop_corner(width, height, spec.size)
    resized = picture.resize((width, height), Image.Resampling.BICUBIC)
    return np.asarray(resized.crop((left, top, left + spec.size, top + spec.size)))


def normalize(frames: npt.NDArray[np.uint8], spec: PixelSpec) -> npt.NDArray[np.float32]:
    """uint8 [T, S, S, 3] to float32 [T, 3, S, S]: scaled to 0..1, less the mean, over the deviation."""
    scaled = frames.transpose(0, 3, 1, 2).astype(np.float32) / np.float32(255)  # [T, 3, S, S]
    mean = np.asarray(spec.mean, np.float32).reshape(1, 3, 1, 1)
    std = np.asarray(spec.std, np.float32).reshape(1, 3, 1, 1)
    return np.ascontiguousarray((scaled - mean) / std)

"""Resizes, crops and normalises pictures for an encoder, with numpy and Pillow, without torch.

Fits to uint8 are bit-exact with the published preprocessing: torchvision's Resize and CenterCrop on a PIL image
(Pillow's antialiased bicubic on uint8), or torch's `interpolate` with nearest pixels. Fits to float32 are torch's
`interpolate` on floats without antialias, up to 1e-5 of a level.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from PIL import Image

from model.video.spec import Frame

PREPROCESSING_VERSION = 1
"""Part of the fingerprint of cached features; raise it with every change that alters a pixel."""

Levels = npt.NDArray[Any]
"""Pixels from 0 to 255: uint8, or float32 with fractions of a level."""

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True, kw_only=True, slots=True)
class PixelSpec:
    """Geometry and normalisation: a square of `size` pixels, and the mean and standard deviation of each channel.

    `crop` takes the middle square; `squash` changes the aspect ratio; `nearest` does so without smoothing, by choosing
    pixels. `bilinear` and `bicubic` take the middle square without antialias and keep fractions of a level: rounding
    them would move Video-LLaVA's features by 1 % of the largest value. `decoder` is FFmpeg's scaler, which works on the
    planes of a decoded frame and changes the aspect ratio.
    """

    size: int = 224
    fit: Literal["crop", "squash", "nearest", "bilinear", "bicubic", "decoder"] = "crop"
    crop_rounding: Literal["even", "down", "up"] = "even"
    """How the offset of the middle square is rounded: to the nearest integer with halves to even, down, or up."""
    crops: Literal[1, 3] = 1
    """Squares of a picture: the middle one, or the first, the middle and the last along the long side."""
    mean: tuple[float, float, float] = CLIP_MEAN
    std: tuple[float, float, float] = CLIP_STD

    @property
    def dtype(self) -> "np.dtype[np.uint8] | np.dtype[np.float32]":
        """The dtype of resized frames."""
        return np.dtype(np.float32) if self.fit in _TAPS else np.dtype(np.uint8)

    def num_bytes(self, num_frames: int) -> int:
        """Return the bytes of resized frames."""
        return math.prod(self.shape(num_frames)) * self.dtype.itemsize

    def shape(self, num_frames: int) -> tuple[int, int, int, int]:
        """Return the shape of resized frames, [num_frames * crops, size, size, 3]."""
        return num_frames * self.crops, self.size, self.size, 3


def resized_size(width: int, height: int, spec: PixelSpec) -> tuple[int, int]:
    """Return (width, height) with a short side of `spec.size`; the long side is truncated to an integer, not rounded.

    For `bilinear` the sides are divided first, as pytorchvideo does it; the others multiply first, as torchvision does.
    """
    short, long = sorted((width, height))
    scaled = int(long / short * spec.size) if spec.fit == "bilinear" else int(spec.size * long / short)
    return (spec.size, scaled) if width <= height else (scaled, spec.size)


_ROUNDED: dict[str, Callable[[float], int]] = {"even": round, "down": math.floor, "up": math.ceil}


def crop_corner(width: int, height: int, spec: PixelSpec) -> tuple[int, int]:
    """Return (left, top) of the middle square of `spec.size` pixels."""
    rounded = _ROUNDED[spec.crop_rounding]
    return rounded((width - spec.size) / 2.0), rounded((height - spec.size) / 2.0)


def nearest_indices(length: int, size: int) -> npt.NDArray[np.int64]:
    """Return the indices [size] of the nearest pixels out of `length`; computed in float32, like torch."""
    scale = np.float32(length) / np.float32(size)
    return np.minimum((np.arange(size, dtype=np.float32) * scale).astype(np.int64), length - 1)


def squares(frame: Frame, spec: PixelSpec) -> Levels:
    """Return the squares of a decoded frame, [crops, size, size, 3] of `spec.dtype`."""
    if spec.fit == "decoder":
        assert frame.scaled is not None, "the reader has scaled the frame"
        return frame.scaled[None]
    if spec.crops == 1:
        return resize(frame.rgb, spec)[None]
    width, height = resized_size(frame.rgb.shape[1], frame.rgb.shape[0], spec)
    left, top = crop_corner(width, height, spec)
    ends = [(left, 0), (left, height - spec.size)] if height > width else [(0, top), (width - spec.size, top)]
    return np.stack([resize(frame.rgb, spec, corner=corner) for corner in (ends[0], (left, top), ends[1])])


def resize(rgb: npt.NDArray[np.uint8], spec: PixelSpec, *, corner: tuple[int, int] | None = None) -> Levels:
    """Resize uint8 [H, W, 3] to [size, size, 3]: uint8, or float32 in levels where `spec.dtype` is float32.

    `corner` is (left, top) of the square in the resized picture; by default it is the middle one.
    """
    if spec.fit == "nearest":
        return rgb[np.ix_(*(nearest_indices(length, spec.size) for length in rgb.shape[:2]))]
    if spec.fit == "squash":
        return np.asarray(Image.fromarray(rgb).resize((spec.size, spec.size), Image.Resampling.BICUBIC))
    width, height = resized_size(rgb.shape[1], rgb.shape[0], spec)
    left, top = corner or crop_corner(width, height, spec)
    if spec.fit in _TAPS:
        return _interpolated(rgb, spec, width, height, left=left, top=top)
    resized = Image.fromarray(rgb).resize((width, height), Image.Resampling.BICUBIC)
    return np.asarray(resized.crop((left, top, left + spec.size, top + spec.size)))


def normalize(frames: Levels, spec: PixelSpec) -> npt.NDArray[np.float32]:
    """Normalise levels [T, S, S, 3] to float32 [T, 3, S, S]: scale to 0..1, subtract mean, divide by deviation."""
    scaled = frames.transpose(0, 3, 1, 2).astype(np.float32) / np.float32(255)  # [T, 3, S, S]
    mean = np.asarray(spec.mean, np.float32).reshape(1, 3, 1, 1)
    std = np.asarray(spec.std, np.float32).reshape(1, 3, 1, 1)
    return np.ascontiguousarray((scaled - mean) / std)


def _linear_weights(fraction: npt.NDArray[np.float32]) -> list[npt.NDArray[np.float32]]:
    """Weights of the pixels at 0 and 1 for places between them, each [n]."""
    return [1 - fraction, fraction]


def _cubic_weights(fraction: npt.NDArray[np.float32]) -> list[npt.NDArray[np.float32]]:
    """Weights of the pixels at -1, 0, 1 and 2 for places between 0 and 1: Keys' cubic convolution with a = -0.75."""
    a = np.float32(-0.75)

    def near(x: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        return ((a + 2) * x - (a + 3)) * x * x + 1

    def far(x: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        return ((a * x - 5 * a) * x + 8 * a) * x - 4 * a

    return [far(fraction + 1), near(fraction), near(1 - fraction), far(2 - fraction)]


_Weights = Callable[[npt.NDArray[np.float32]], list[npt.NDArray[np.float32]]]
_TAPS: dict[str, tuple[_Weights, int]] = {"bilinear": (_linear_weights, 0), "bicubic": (_cubic_weights, -1)}
"""By fit: the weights of the pixels around a place, and the first of them, from the pixel at or before the place."""


def _interpolated(
    rgb: npt.NDArray[np.uint8], spec: PixelSpec, width: int, height: int, *, left: int, top: int
) -> npt.NDArray[np.float32]:
    """Return the square at (left, top) of the picture resized to `width` x `height`: float32 [size, size, 3]."""
    levels = rgb.astype(np.float32)
    for axis, length, offset in ((0, height, top), (1, width, left)):
        levels = _resampled(levels, spec, axis=axis, length=length, offset=offset)
    return np.ascontiguousarray(levels)


def _resampled(
    levels: npt.NDArray[np.float32], spec: PixelSpec, *, axis: int, length: int, offset: int
) -> npt.NDArray[np.float32]:
    """Resize one axis to `length` as torch does with `align_corners=False`, and keep `size` pixels from `offset` on."""
    weights, first_tap = _TAPS[spec.fit]
    num_pixels = levels.shape[axis]
    scale = float(np.float32(num_pixels / length))
    # torch computes places in float32 with a fused multiply-add, so they are rounded once, at the end
    places = ((np.arange(offset, offset + spec.size) + 0.5) * scale - 0.5).astype(np.float32)
    if spec.fit == "bilinear":
        places = np.maximum(places, np.float32(0))  # torch does not extrapolate at the first pixel
    before = np.floor(places).astype(np.int64)
    shape = [1, 1, 1]
    shape[axis] = spec.size
    total: npt.NDArray[np.float32] = np.zeros((), np.float32)
    for tap, weight in enumerate(weights(places - before.astype(np.float32)), start=first_tap):
        pixels = np.take(levels, np.clip(before + tap, 0, num_pixels - 1), axis=axis)
        total = total + pixels * weight.reshape(shape)
    return total

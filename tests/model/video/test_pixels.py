"""Preprocessing is bit-exact with the published one."""

import json
from typing import Literal

import numpy as np
import pytest
import torch
from torch.nn import functional

from model.video.pixels import PixelSpec, crop_corner, nearest_indices, normalize, resize, resized_size
from model.video.reader import open_video
from model.video.spec import FrameSpec, VideoLimits
from tests.published import clip, golden


def test_sizes_and_corners_are_the_published_ones() -> None:
    for case in json.loads((golden("videochat-preproc") / "geometry.json").read_text()):
        size = resized_size(case["width"], case["height"], PixelSpec())
        assert list(size) == case["resized"]
        assert crop_corner(*size, PixelSpec()) == (case["left"], case["top"])


def test_half_a_pixel_is_rounded_to_even() -> None:
    assert crop_corner(397, 224, PixelSpec()) == (86, 0)
    assert crop_corner(399, 224, PixelSpec()) == (88, 0)


def test_half_a_pixel_is_rounded_down_on_request() -> None:
    assert crop_corner(399, 224, PixelSpec(crop_rounding="down")) == (87, 0)


@pytest.mark.parametrize("fit", ["bilinear", "bicubic"])
@pytest.mark.parametrize(("height", "width"), [(176, 320), (320, 176), (225, 300), (77, 100), (1080, 1920), (90, 450)])
def test_fits_in_floats_are_those_of_torch_without_antialias(
    fit: Literal["bilinear", "bicubic"], height: int, width: int
) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    spec = PixelSpec(fit=fit)
    resized_width, resized_height = resized_size(width, height, spec)
    left, top = crop_corner(resized_width, resized_height, spec)
    pixels = torch.from_numpy(picture).permute(2, 0, 1)[None].float()
    whole = functional.interpolate(pixels, size=(resized_height, resized_width), mode=fit, align_corners=False)
    expected = whole[0, :, top : top + 224, left : left + 224].permute(1, 2, 0).numpy()
    got = resize(picture, spec)
    assert got.dtype == spec.dtype == np.float32
    assert np.abs(got - expected).max() < 1e-3, "levels, of 255"
    assert np.abs(got - np.rint(got)).max() > 0.4, "fractions of a level are kept"


def test_the_long_side_is_computed_as_the_original_of_each_fit_does() -> None:
    width, height = next(
        (width, height)
        for height in range(224, 800)
        for width in range(height, 1200)
        if resized_size(width, height, PixelSpec(fit="bilinear")) != resized_size(width, height, PixelSpec())
    )
    assert resized_size(width, height, PixelSpec(fit="bilinear")) == (int(width / height * 224), 224)
    assert resized_size(width, height, PixelSpec(fit="bicubic")) == (int(224 * width / height), 224)


@pytest.mark.parametrize("way", ["up", "down"])
def test_a_picture_is_enlarged_and_reduced_to_the_last_bit(way: str) -> None:
    pictures = np.load(golden("videochat-preproc") / "synthetic.npz")
    np.testing.assert_array_equal(resize(pictures[f"{way}_in"], PixelSpec()), pictures[f"{way}_out"])


@pytest.mark.parametrize("name", ["yoga", "jesse_dance"])
def test_frames_of_the_published_clips_are_exact_from_file_to_tensor(name: str) -> None:
    folder = golden("videochat-preproc")
    expected = json.loads((folder / "videos.json").read_text())["videos"][name]["segments"]["8"]
    pictures = np.load(folder / f"{name}_8.npz")
    with open_video(clip(f"{name}.mp4"), VideoLimits()) as video:
        frames = np.stack([resize(frame.rgb, PixelSpec()) for frame in video.frames(FrameSpec(count=8))])
    np.testing.assert_array_equal(frames[0], pictures["first_u8"])
    np.testing.assert_array_equal(frames[-1], pictures["last_u8"])

    tensor = normalize(frames, PixelSpec())
    assert tensor.shape == (8, 3, 224, 224)
    assert tensor.dtype == np.float32
    np.testing.assert_allclose(tensor[0], pictures["first"], atol=2e-3)
    np.testing.assert_allclose(tensor[-1], pictures["last"], atol=2e-3)
    np.testing.assert_allclose(tensor.mean((2, 3), dtype=np.float64), expected["mean"], atol=1e-5)
    np.testing.assert_allclose(tensor.std((2, 3), dtype=np.float64), expected["std"], atol=1e-5)


def test_cropping_removes_the_sides_and_squashing_keeps_them() -> None:
    picture = np.zeros((100, 300, 3), np.uint8)
    picture[:, :50] = picture[:, 250:] = 255
    assert resize(picture, PixelSpec(size=64)).max() == 0
    squashed = resize(picture, PixelSpec(size=64, fit="squash"))
    assert squashed.shape == (64, 64, 3)
    assert squashed[:, 0].min() == squashed[:, -1].min() == 255
    assert squashed[:, 32].max() == 0


def test_normalising_gives_each_channel_its_own_mean_and_deviation() -> None:
    frames = np.full((2, 4, 4, 3), 255, np.uint8)
    frames[1] = 0
    tensor = normalize(frames, PixelSpec(size=4, mean=(0.5, 0.25, 0.0), std=(0.5, 0.25, 1.0)))
    assert tensor[0, :, 0, 0].tolist() == [1.0, 3.0, 1.0]
    assert tensor[1, :, 0, 0].tolist() == [-1.0, -1.0, 0.0]


def test_the_nearest_pixels_are_those_that_torch_takes() -> None:
    for length in (*range(1, 1300), 1920, 2160, 3840, 4096, 8191, 8192):
        row = torch.arange(length, dtype=torch.float32).reshape(1, 1, 1, length)
        for size in (56, 224, 336):
            expected = torch.nn.functional.interpolate(row, (1, size)).flatten()
            assert nearest_indices(length, size).tolist() == expected.tolist(), (length, size)


def test_nearest_pixels_are_not_smoothed() -> None:
    picture = np.arange(90 * 160 * 3, dtype=np.uint32).astype(np.uint8).reshape(90, 160, 3)
    square = resize(picture, PixelSpec(size=40, fit="nearest"))
    np.testing.assert_array_equal(square[:, :, 1], picture[nearest_indices(90, 40)][:, ::4, 1])
    np.testing.assert_array_equal(resize(square, PixelSpec(size=40, fit="nearest")), square)

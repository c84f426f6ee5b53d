"""Pixels of real files are those that the original programs prepare."""

import json

import numpy as np
import pytest
import torch

from model.video.inputs import InputSpec
from model.video.pixels import PixelSpec, normalize
from model.video.sampling import sample_clip
from model.video.spec import FrameSpec
from tests.parity.goldens import tensors
from tests.published import golden

pytest.importorskip("av", reason="decoding needs PyAV")


def test_the_decoders_scaler_gives_the_pixels_of_decord() -> None:
    folder = golden("video-llama-e2e")
    pixels = PixelSpec(fit="decoder")
    sampled = sample_clip(
        folder / "clip.mp4", InputSpec(frames=FrameSpec(count=8, rule="left-edges"), pixels=pixels, max_frames=32)
    )
    expected = tensors(folder / "expected.safetensors")["pixel_values_sub7"]  # [3, 8, 32, 32]
    got = torch.from_numpy(normalize(sampled.inputs.frames, pixels)).transpose(0, 1)[..., ::7, ::7]
    assert list(sampled.indices) == json.loads((folder / "clip.json").read_text())["indices"]
    assert (got - expected).abs().max() < 2e-5 * expected.abs().max()


def test_three_crops_of_a_frame_are_the_left_the_middle_and_the_right_square() -> None:
    folder = golden("imagebind-llm-e2e")
    expected = tensors(folder / "expected.safetensors")["video_sub"][0]  # [15, 3, 2, 21, 21]
    pixels = PixelSpec(fit="bilinear", crops=3, crop_rounding="up")
    described = json.loads((folder / "clip.json").read_text())
    for number, stretch in enumerate(described["video_clips"]):
        for place, index in enumerate(stretch["frame_ids"]):
            seconds = FrameSpec(count=1, start=index / 25, end=(index + 0.5) / 25)
            sampled = sample_clip(folder / "clip.mp4", InputSpec(frames=seconds, pixels=pixels))
            assert sampled.indices == (index,)
            got = normalize(sampled.inputs.frames, pixels)[..., ::11, ::11]  # [3, 3, 21, 21]
            wanted = expected[3 * number : 3 * number + 3, :, place].numpy()
            assert np.abs(got - wanted).max() < 1e-4 * np.abs(wanted).max()

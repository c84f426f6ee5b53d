"""Mel spectrograms of real files are those that the original programs prepare."""

import numpy as np
import pytest

from model.sound import mel_spectrograms
from model.video.inputs import InputSpec, SoundSpec
from model.video.pixels import PixelSpec
from model.video.sampling import sample_clip
from model.video.sound import centred
from model.video.spec import FrameSpec
from tests.parity.goldens import tensors
from tests.published import golden

pytest.importorskip("av", reason="decoding needs PyAV")

TOLERANCE = 1e-4
"""Of the largest value; the sets allow it for sound."""
LEFT_EDGES, END_POINTS = SoundSpec(count=8), SoundSpec(count=3, rule="end-points")


@pytest.mark.parametrize(("name", "spec"), [("video-llama-e2e", LEFT_EDGES), ("imagebind-llm-e2e", END_POINTS)])
def test_the_spectrograms_of_a_file_are_those_of_the_original(name: str, spec: SoundSpec) -> None:
    folder = golden(name)
    expected = tensors(folder / "expected.safetensors")["audio_mel_sub"][0].numpy()  # [count, 1, 32, 51]
    sampled = sample_clip(folder / "clip.mp4", InputSpec(frames=FrameSpec(count=1), pixels=PixelSpec(), sound=spec))
    assert sampled.inputs.sound is not None
    got = mel_spectrograms(sampled.inputs.sound, spec)[:, :, ::4, ::4]
    assert np.abs(got - expected).max() < TOLERANCE * np.abs(expected).max()


def test_the_spectrograms_of_a_wave_are_those_of_the_original() -> None:
    given = tensors(golden("video-llama-open") / "preprocess.safetensors")
    wave = (given["audio_wave"].float() / 32768).numpy()
    starts = LEFT_EDGES.starts(wave.shape[1])
    stretches = centred([wave[:, start : start + LEFT_EDGES.max_samples] for start in starts], starts)
    got = mel_spectrograms(stretches, LEFT_EDGES)[:, :, ::8, ::4]
    expected = given["audio_mel_sub"][0].numpy()
    assert np.abs(got - expected).max() < TOLERANCE * np.abs(expected).max()

"""Both Video-LLaVAs against tensors, prompts, frames, ids and texts that the original programs made."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers.activations import ACT2FN

from model.engine.sampling_params import SamplingParams
from model.families import family_module, load_family
from model.family import Family
from model.networks.video_llava import VideoLlavaNetwork
from model.offline import Offline, watch
from model.text.conversation import Conversation, Turn
from model.verification.comparison import Comparison
from model.verification.stage import Claim, Stage
from model.video.pixels import PixelSpec, normalize, resize
from model.video.spec import FRAME_RULES
from model.weights import WeightsError
from tests.parity.goldens import TOLERANCE, read_json, tensors
from tests.published import golden

SETS = [
    ("video-llava", "video-llava-open"),
    ("video-llava", "video-llava-e2e"),
    ("video-llava-hf", "video-llava-hf-open"),
    ("video-llava-hf", "video-llava-hf-e2e"),
]


@pytest.mark.parametrize(("family", "name"), SETS)
def test_every_stage_gives_the_tensors_prompts_and_texts_of_the_original(family: str, name: str) -> None:
    folder = golden(name)
    expected = tensors(folder / "expected.safetensors")
    comparison = Comparison(expected, torch.float32)
    findings = list(family_module(family).verify_stages(load_family(family, checkpoint=folder), folder))
    rows = list(comparison.rows(findings))
    assert [row for row in rows if row.verdict != "pass"] == []
    assert expected.keys() <= {row.name for row in rows}
    claims = {finding.name for finding in findings if isinstance(finding, Claim)}
    turns = {f"turn{number}.{what}" for number in (1, 2) for what in ("prompt", "input_ids", "text")}
    assert claims == ({"clip.indices"} | turns if name.endswith("e2e") else {"prompt", "input_ids"})
    for finding in findings:
        if isinstance(finding, Stage) and finding.name in expected:
            assert finding.tensor.shape == expected[finding.name].shape


@pytest.mark.parametrize("name", ["video-llava", "video-llava-hf"])
def test_two_turns_about_a_file_give_the_texts_of_the_original_from_cached_features(name: str) -> None:
    folder = golden(f"{name}-e2e")
    family = load_family(name, checkpoint=folder)
    clip, features = watch(family, folder / "clip.mp4")
    assert {part: array.dtype for part, array in features.features.items()} == {"video": torch.float16}
    turns: list[Turn] = []
    offline = Offline(family)
    for expected in read_json(folder / "dialogue.json")["turns"]:
        turns.append(Turn(role="user", text=expected["question"]))
        greedy = SamplingParams(temperature=0.0, max_tokens=len(expected["generated_ids"]))
        offline.add("answer", Conversation(clips=(clip,), turns=tuple(turns)), [features], greedy)
        outputs = list(offline.outputs())
        assert [token for output in outputs for token in output.token_ids] == expected["generated_ids"]
        assert "".join(output.text for output in outputs).strip() == expected["text"]
        turns.append(Turn(role="assistant", text=expected["text"]))


@pytest.mark.parametrize(("rule", "listed"), [("linspace", "original_linspace8"), ("left-edges", "hf_readme_arange8")])
def test_frame_numbers_are_those_of_the_original(rule: str, listed: str) -> None:
    for num_frames, indices in read_json(golden("video-llava-open") / "frame_indices.json")[listed].items():
        assert FRAME_RULES[rule](int(num_frames), 8) == indices


def test_frames_become_pixels_as_in_the_original() -> None:
    reference = tensors(golden("video-llava-open") / "preprocess.safetensors")
    spec = PixelSpec(size=224, fit="bilinear")
    squares = np.stack([resize(frame, spec) for frame in reference["raw_frames"].numpy()])
    pixel_values = torch.from_numpy(normalize(squares, spec))  # [T, 3, 224, 224]
    torch.testing.assert_close(pixel_values[:, :, ::7, ::7], reference["pixel_values_sub7"], atol=2e-5, rtol=1e-5)
    torch.testing.assert_close(pixel_values.mean((2, 3)), reference["pixel_values_mean"], atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(pixel_values.std((2, 3)), reference["pixel_values_std"], atol=1e-5, rtol=1e-5)


def norms_are_finer(network: VideoLlavaNetwork) -> None:
    for module in network.video_tower.modules():
        if isinstance(module, nn.LayerNorm):
            module.eps = 1e-6


def activation_is_another(network: VideoLlavaNetwork) -> None:
    other = {"gelu": "quick_gelu", "quick_gelu": "gelu"}[network.config.activation]
    for layer in network.video_tower.encoder.layers:
        layer.mlp.activation_fn = ACT2FN[other]


def a_layer_is_missing(network: VideoLlavaNetwork) -> None:
    del network.video_tower.encoder.layers[-1]


def frames_are_shifted(network: VideoLlavaNetwork) -> None:
    encode = network.encode
    network.encode = lambda pixel_values: encode(pixel_values.roll(1, 1))  # type: ignore[method-assign]


def time_is_not_attended(network: VideoLlavaNetwork) -> None:
    for layer in network.video_tower.encoder.layers:
        layer.temporal_attn.forward = lambda tokens: (torch.zeros_like(tokens), None)


def frames_are_not_numbered(network: VideoLlavaNetwork) -> None:
    for layer in network.video_tower.encoder.layers:
        layer.temporal_embedding.data.zero_()


MISTAKES = [norms_are_finer, activation_is_another, a_layer_is_missing, frames_are_shifted]
TEMPORAL_MISTAKES = [time_is_not_attended, frames_are_not_numbered]


@pytest.mark.parametrize(
    ("name", "mistake"),
    [
        *(("video-llava", mistake) for mistake in (*MISTAKES, *TEMPORAL_MISTAKES)),
        *(("video-llava-hf", mistake) for mistake in MISTAKES),
    ],
)
def test_a_deliberate_mistake_is_detected(name: str, mistake: Callable[[VideoLlavaNetwork], None]) -> None:
    folder = golden(f"{name}-open")
    wrong = load_family(name, checkpoint=folder)
    assert isinstance(wrong.network, VideoLlavaNetwork)
    mistake(wrong.network)
    expected = tensors(folder / "expected.safetensors")["video_features"]
    got = wrong.encode(tensors(folder / "inputs.safetensors")["pixel_values_video"].transpose(0, 1)[None])["video"]
    error = (got.reshape(expected.shape) - expected).abs().max() / expected.abs().max()
    assert error > TOLERANCE


def test_the_two_networks_refuse_each_other_s_reference() -> None:
    for family, name in (("video-llava", "video-llava-hf-open"), ("video-llava-hf", "video-llava-open")):
        with pytest.raises(WeightsError, match="so it is the other Video-LLaVA"):
            load_family(family, checkpoint=golden(name))


@pytest.fixture
def reference(tmp_path: Path) -> Path:
    """A copy of a folder of reference tensors, which a test may damage."""
    folder = tmp_path / "reference"
    folder.mkdir()
    for name in ("config.json", "weights.safetensors", "inputs.safetensors"):
        shutil.copyfile(golden("video-llava-open") / name, folder / name)
    return folder


@pytest.mark.parametrize(
    ("ids", "said"),
    [
        ([1, 5, 6], "no slot for a video"),
        ([1, -200, -200, -200, 6], "no slot for a video"),
        ([1, -200, -200, -200, -200, -200, 6], "marks beyond the slot for a video"),
    ],
)
def test_reference_tensors_without_a_slot_for_the_video_are_refused(reference: Path, ids: list[int], said: str) -> None:
    inputs = tensors(reference / "inputs.safetensors")
    save_file(inputs | {"input_ids": torch.tensor([ids])}, reference / "inputs.safetensors")
    with pytest.raises(WeightsError, match=said):
        computed(reference)


def computed(folder: Path) -> dict[str, Tensor]:
    findings = family_module("video-llava").verify_stages(load_family("video-llava", checkpoint=folder), folder)
    return {finding.name: finding.tensor for finding in findings if isinstance(finding, Stage)}


def test_a_folder_without_the_image_tower_omits_its_stages(reference: Path) -> None:
    weights = tensors(reference / "weights.safetensors")
    rest = {key: tensor for key, tensor in weights.items() if "image_tower" not in key}
    save_file(rest, reference / "weights.safetensors")
    expected = tensors(golden("video-llava-open") / "expected.safetensors")
    family = load_family("video-llava", checkpoint=reference)
    rows = list(Comparison(expected, torch.float32).rows(family_module("video-llava").verify_stages(family, reference)))
    assert [row.name for row in rows if row.verdict == "omitted"] == ["image_features", "image_tokens"]
    assert not any(row.is_bad for row in rows)


def test_another_crop_moves_the_rows_of_hf() -> None:
    folder = golden("video-llava-hf-e2e")
    family = load_family("video-llava-hf", checkpoint=folder)
    even = shown(family, folder)
    assert family.inputs is not None
    family.inputs = replace(family.inputs, pixels=replace(family.inputs.pixels, crop_rounding="even"))
    assert (shown(family, folder) - even).abs().max() > 0.05 * even.abs().max()


def shown(family: Family, folder: Path) -> Tensor:
    """The video tokens of a folder's clip."""
    _, features = watch(family, folder / "clip.mp4")
    return family.project("video", features.features["video"])

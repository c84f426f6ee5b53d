"""VTimeLLM's prompt, its small model, and folders of its reference tensors."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from model.families import load_family
from model.families.vtimellm.family import PUBLISHED_SAMPLING, VTimeLLMTemplate, verify_stages
from model.family import Family
from model.text.conversation import Slot, SpecialToken
from model.text.tokenizer import plain_tokenizer
from model.verification.stage import Claim, Stage
from model.video.inputs import InputSpec
from model.video.spec import FrameSpec, InvalidFrameSpec
from model.weights import WeightsError
from tests.model.families.conversations import asked, rendered
from tests.published import golden

SYSTEM = VTimeLLMTemplate.system
MARKUP = ("<s>", "</s>", "<unk>", "<video>", "<image>", "USER:", "ASSISTANT:")
TOKENIZER = plain_tokenizer()

hostile = st.lists(
    st.one_of(st.sampled_from((*MARKUP, "ASSISTANT", "USER", ":", "<", ">", "-200", " ", "\n")), st.text(max_size=3))
).map("".join)


@pytest.fixture(scope="module")
def tiny() -> Family:
    return load_family("vtimellm")


def test_the_question_follows_its_video_on_a_line_of_its_own() -> None:
    assert rendered(VTimeLLMTemplate(), asked("What is it?")) == (
        "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, "
        "detailed, and polite answers to the user's questions. USER: [video]\nWhat is it? ASSISTANT:"
    )


def test_a_later_prompt_contains_the_earlier_turns_and_the_video_once() -> None:
    assert rendered(VTimeLLMTemplate(), asked("First?", " From 00 to 17.\n", "Second?")) == (
        f"{SYSTEM} USER: [video]\nFirst? ASSISTANT: From 00 to 17.</s>USER: Second? ASSISTANT:"
    )


@given(hostile, hostile, hostile, hostile)
def test_no_text_can_imitate_a_turn_or_a_special_token(system: str, first: str, answer: str, second: str) -> None:
    pieces = VTimeLLMTemplate().render(asked(first, answer, second, system=system))
    assert [piece for piece in pieces if not isinstance(piece, str)] == [Slot(0), SpecialToken("</s>")]
    texts = [piece for piece in pieces if isinstance(piece, str)]
    assert sum(text.count("USER:") for text in texts) == 2
    assert sum(text.count("ASSISTANT:") for text in texts) == 2
    assert not any(markup in text for text in texts for markup in MARKUP[:-2])
    specials = {TOKENIZER.special_id(name) for name in ("<s>", "</s>")}
    assert not specials & {token for text in texts for token in TOKENIZER.encode(text)}


def test_the_small_model_has_the_whole_architecture(tiny: Family) -> None:
    assert tiny.num_video_tokens == tiny.time_axis == 100
    assert tiny.inputs is not None
    assert tiny.inputs.frames == FrameSpec(count=100, rule="linspace")
    assert (tiny.inputs.pixels.size, tiny.inputs.pixels.fit) == (56, "bicubic")
    assert tiny.default_sampling == PUBLISHED_SAMPLING


@pytest.mark.parametrize("count", [1, 99])
def test_another_number_of_frames_than_its_time_axis_is_refused(tiny: Family, count: int) -> None:
    assert tiny.inputs is not None
    with pytest.raises(InvalidFrameSpec, match="exactly 100 frames"):
        InputSpec(
            frames=FrameSpec(count=count, rule="linspace"),
            pixels=tiny.inputs.pixels,
            min_frames=tiny.inputs.min_frames,
            max_frames=tiny.inputs.max_frames,
        )


@pytest.fixture
def reference(tmp_path: Path) -> Path:
    """A copy of a folder of reference tensors without expected values, which a test may damage."""
    folder = tmp_path / "reference"
    folder.mkdir()
    for name in ("config.json", "weights.safetensors", "inputs.safetensors"):
        shutil.copyfile(golden("vtimellm-open") / name, folder / name)
    return folder


def stages(folder: Path, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    findings = verify_stages(load_family("vtimellm", checkpoint=folder, dtype=dtype), folder)
    return {finding.name: finding.tensor for finding in findings if isinstance(finding, Stage)}


def test_stages_are_computed_without_expected_values(reference: Path) -> None:
    computed = stages(reference, torch.bfloat16)
    assert computed["video_tokens"].dtype == torch.bfloat16
    assert len(computed["greedy_ids"]) == 16
    assert not any(name.startswith("merged") for name in computed)


def test_a_prompt_that_differs_is_a_finding_and_does_not_change_the_stages_after_it(reference: Path) -> None:
    before = stages(reference)
    config = json.loads((reference / "config.json").read_bytes())
    (reference / "config.json").write_text(json.dumps(config | {"question": "<video>\nWhat?"}))
    claims = [
        finding
        for finding in verify_stages(load_family("vtimellm", checkpoint=reference), reference)
        if isinstance(finding, Claim)
    ]
    assert [claim.name for claim in claims if claim.got != claim.expected] == ["prompt", "input_ids"]
    assert torch.equal(stages(reference)["greedy_ids"], before["greedy_ids"])


@pytest.mark.parametrize(
    ("inputs", "said"),
    [
        ({"input_ids": torch.tensor([[1, 5]])}, "no slot for a video"),
        ({"input_ids": torch.tensor([[1, -200, 5, -200]])}, "marks beyond"),
        ({}, "lacks input_ids"),
    ],
)
def test_reference_tensors_without_one_place_for_the_video_are_refused(
    reference: Path, inputs: dict[str, torch.Tensor], said: str
) -> None:
    save_file({"pixel_values": torch.zeros(2, 3, 42, 42), **inputs}, reference / "inputs.safetensors")
    with pytest.raises(WeightsError, match=said):
        stages(reference)


@pytest.mark.parametrize(
    ("sizes", "said"),
    [
        ({"clip": {}}, "does not hold the sizes"),
        ({"llm": []}, "does not hold the sizes"),
        ({"lora": None}, "no options of the adapters"),
        ({"lora": {"r": 4}}, "lacks lora_alpha"),
        ({"lora": {"r": 3, "lora_alpha": 8, "target_modules": ["q_proj"]}}, "does not account for|not of rank 3"),
    ],
)
def test_reference_tensors_of_impossible_sizes_are_refused(
    reference: Path, sizes: dict[str, object], said: str
) -> None:
    path = reference / "config.json"
    path.write_text(json.dumps(json.loads(path.read_bytes()) | sizes))
    with pytest.raises(WeightsError, match=said):
        stages(reference)


@pytest.mark.parametrize(
    ("module", "values", "said"),
    [
        ("clip", {"hidden_act": "gelu"}, "its CLIP has the activation gelu"),
        ("clip", {"layer_norm_eps": 1e-6}, "layer_norm_eps"),
        ("llm", {"rope_theta": 1e6}, r"its LLaMA has a rope_theta of 1e\+06"),
    ],
)
def test_a_setting_that_other_models_have_is_refused(
    reference: Path, module: str, values: dict[str, object], said: str
) -> None:
    path = reference / "config.json"
    config = json.loads(path.read_bytes())
    path.write_text(json.dumps(config | {module: config[module] | values}))
    with pytest.raises(WeightsError, match=said):
        stages(reference)


def test_reference_tensors_without_one_factor_of_an_adapter_are_refused(reference: Path) -> None:
    weights = load_file(reference / "weights.safetensors")
    del weights["stage3.base_model.model.model.layers.1.mlp.up_proj.lora_B.weight"]
    save_file(weights, reference / "weights.safetensors")
    with pytest.raises(WeightsError, match="stage3 has only one of the two factors"):
        stages(reference)

"""MobiLlama against tensors, prompts, ids and texts that the original code made."""

import shutil
from pathlib import Path

import pytest
import torch
from torch import Tensor

from model.checkpoints.folder import write_folder
from model.engine.engine import Engine, EngineConfig, TextSegment
from model.engine.sampling_params import SamplingParams
from model.families import load_family
from model.families.mobillama.family import read_source
from model.families.mobillama.template import OneShotTemplate
from model.families.mobillama.verification import verify_stages
from model.family import Family
from model.text.conversation import Conversation
from model.text.tokenizer import TokenizerError
from model.verification.stage import Claim, Stage
from model.verification.verification import Verification
from model.weights import WeightsError
from tests.model.families.conversations import asked
from tests.parity.goldens import assert_near, read_json, tensors
from tests.parity.spoiling import changed, drop
from tests.published import golden

SETS = ("mobillama-open", "mobillama-e2e")


@pytest.fixture(params=SETS)
def folder(request: pytest.FixtureRequest) -> Path:
    return golden(str(request.param))


@pytest.fixture(scope="module")
def family() -> Family:
    return load_family("mobillama", checkpoint=golden("mobillama-e2e"))


def assert_equal_to_the_original(family: Family, folder: Path) -> None:
    findings = list(verify_stages(family, folder))
    claims = [finding for finding in findings if isinstance(finding, Claim)]
    assert [claim.name for claim in claims if claim.expected is None or claim.got != claim.expected] == []
    expected = tensors(folder / "expected.safetensors")
    stages = {finding.name: finding.tensor for finding in findings if isinstance(finding, Stage)}
    assert stages.keys() == expected.keys()
    for name, tensor in stages.items():
        if tensor.is_floating_point():
            assert_near(tensor, expected[name], name)
        else:
            assert tensor.tolist() == expected[name].tolist(), name


def test_every_stage_gives_the_tensors_of_the_original(folder: Path) -> None:
    family = load_family("mobillama", checkpoint=folder)
    assert family.network.config.to_json()["shared_mlp"]
    assert_equal_to_the_original(family, folder)


def test_a_converted_folder_is_verified_with_the_files_of_a_reference(tmp_path: Path) -> None:
    checkpoint, origin = read_source(golden("mobillama-e2e"), parts={}, ignored=(), dtype=None)
    folder = tmp_path / "mine"
    write_folder(folder, checkpoint, origin=origin, report=lambda *_: None)
    for name in ("dialogue.json", "expected.safetensors"):
        shutil.copyfile(golden("mobillama-e2e") / name, folder / name)
    verification = Verification(folder, family="mobillama", dtype="float32", device="cpu", quantization=None)
    rows = list(verification.rows())
    assert [row.name for row in rows if row.verdict != "pass"] == []
    assert {"digest", "prompt0.greedy_logits", "prompt2.text"} <= {row.name for row in rows}


@pytest.fixture(params=["first", "last", "none of it"])
def deduplicated(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A copy of a set whose file holds the shared MLP under one layer's name, or not at all."""
    folder = shutil.copytree(golden("mobillama-open"), tmp_path / "set")
    shutil.copyfile(folder / "weights_dedup.safetensors", folder / "weights.safetensors")
    if request.param == "last":
        changed(folder / "weights.safetensors", move_to_the_last_layer)
    if request.param == "none of it":
        changed(folder / "weights.safetensors", drop("model.layers.0.mlp"))
    return folder


def move_to_the_last_layer(state: dict[str, Tensor]) -> None:
    for kind in ("gate", "up", "down"):
        state[f"model.layers.3.mlp.{kind}_proj.weight"] = state.pop(f"model.layers.0.mlp.{kind}_proj.weight")


def test_a_file_with_one_copy_of_the_shared_mlp_is_read(deduplicated: Path, request: pytest.FixtureRequest) -> None:
    if request.node.callspec.params["deduplicated"] == "none of it":
        with pytest.raises(WeightsError, match=r"no key covers: .*mlp"):
            load_family("mobillama", checkpoint=deduplicated)
    else:
        assert_equal_to_the_original(load_family("mobillama", checkpoint=deduplicated), deduplicated)


def test_a_reference_without_a_tokenizer_cannot_answer() -> None:
    family = load_family("mobillama", checkpoint=golden("mobillama-open"))
    with pytest.raises(TokenizerError, match=r"has no tokenizer\.model"):
        family.tokenize(asked("Hello?", num_clips=0))


def test_prompts_of_conversations_are_tokenised_as_by_the_original(family: Family) -> None:
    cases = read_json(golden("mobillama-open") / "prompts.json")["cases"]
    prompts = read_json(golden("mobillama-e2e") / "dialogue.json")["prompts"]
    ids_of = {prompt["prompt"]: tuple(prompt["input_ids"]) for prompt in prompts}
    for case in cases:
        texts = [text for turn in case["turns"] for text in turn if text is not None]
        conversation = asked(*texts, num_clips=0)
        assert OneShotTemplate().render(conversation) == (case["prompt"],)
        assert family.tokenize(conversation) == (ids_of[case["prompt"]],)


def test_the_engine_answers_as_the_original(family: Family) -> None:
    """All prompts in one batch, with packed linear layers that stay shared."""
    prompts = read_json(golden("mobillama-e2e") / "dialogue.json")["prompts"]
    loaded = load_family("mobillama", checkpoint=golden("mobillama-e2e"))
    engine = Engine(loaded.language_model, loaded.tokenizer, EngineConfig(max_model_len=loaded.max_model_len))
    first, *others = (layer.mlp for layer in loaded.language_model.model.layers)
    assert all(mlp is first for mlp in others)
    for number, prompt in enumerate(prompts):
        engine.add_request(str(number), [TextSegment(tuple(prompt["input_ids"]))], SamplingParams(max_tokens=16))
    ids: dict[str, list[int]] = {str(number): [] for number in range(len(prompts))}
    texts = dict.fromkeys(ids, "")
    while engine.has_work:
        for output in engine.step():
            ids[output.request_id] += output.token_ids
            texts[output.request_id] += output.text
    assert list(ids.values()) == [prompt["generated_ids"] for prompt in prompts]
    assert [text.strip() for text in texts.values()] == [prompt["text"] for prompt in prompts]


@torch.inference_mode()
def test_a_deliberate_mistake_is_detected() -> None:
    folder = golden("mobillama-open")
    family = load_family("mobillama", checkpoint=folder)
    family.language_model.model.norm.variance_epsilon = 1e-2
    with pytest.raises(AssertionError):
        assert_equal_to_the_original(family, folder)


def test_a_conversation_of_the_engine_has_no_clips(family: Family) -> None:
    assert family.modalities == ("text",)
    assert (family.parts, family.num_video_tokens) == ((), 0)
    assert isinstance(family.tokenize(Conversation(clips=(), turns=asked("Hi").turns))[0], tuple)

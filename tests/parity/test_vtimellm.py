"""VTimeLLM against tensors, prompts, frames, pixels and answers that the original code made."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional

from model.engine.sampling_params import SamplingParams
from model.families import load_family
from model.families.vtimellm.family import VTimeLLMTemplate
from model.families.vtimellm.network import VTimeLLMNetwork
from model.family import Family
from model.offline import Offline, watch
from model.text.conversation import Clip, Conversation, Turn
from model.verification.splicing import Mark, prompt_ids, prompt_text
from model.verification.verification import Verification
from model.video.pixels import PixelSpec, normalize, resize
from model.video.sampling import sample_clip
from model.video.spec import FRAME_RULES
from tests.parity.goldens import assert_near, read_json, tensors
from tests.published import golden

MARK = Mark(text="<video>", ids=(-200,))
SETS = ("vtimellm-open", "vtimellm-e2e")


@pytest.fixture(scope="module")
def family() -> Family:
    return load_family("vtimellm", checkpoint=golden("vtimellm-e2e"))


@pytest.mark.parametrize("name", SETS)
def test_every_stage_prompt_and_answer_is_that_of_the_original(name: str) -> None:
    folder = golden(name)
    verification = Verification(folder, family="vtimellm", dtype="float32", device="cpu", quantization=None)
    assert {row.name: row.note for row in verification.rows() if row.verdict != "pass"} == {}
    assert verification.tensors.keys() == tensors(folder / "expected.safetensors").keys()


def test_prompts_read_as_in_the_original() -> None:
    expected = read_json(golden("vtimellm-open") / "prompts.json")
    family = load_family("vtimellm", checkpoint=golden("vtimellm-open"))
    clip = Clip(frame_indices=(0,), fps=1.0)
    first, last = Turn(role="user", text="First?"), Turn(role="user", text="Second?")
    for turns, name in (
        ((Turn(role="user", text=" describe the video."),), "single_turn"),
        ((first, Turn(role="assistant", text="Answer."), last), "two_turn"),
    ):
        conversation = Conversation(clips=(clip,), turns=turns)
        assert prompt_text(family, conversation, MARK) == expected[name]
    assert prompt_ids(family, conversation, MARK)[:5] == expected["tokenised_prefix"]
    assert VTimeLLMTemplate.stop == (expected["stop_str"],)


def test_frames_are_selected_as_in_the_original() -> None:
    for length, indices in read_json(golden("vtimellm-open") / "frame_indices.json").items():
        assert FRAME_RULES["linspace"](int(length), 100) == indices


def test_frames_of_a_part_of_a_clip_are_those_of_the_original(family: Family) -> None:
    assert family.inputs is not None
    expected = read_json(golden("vtimellm-e2e") / "clip.json")["interval"]
    start, end = expected["seconds"]
    inputs = replace(family.inputs, frames=replace(family.inputs.frames, start=start, end=end))
    assert list(sample_clip(golden("vtimellm-e2e") / "clip.mp4", inputs).indices) == expected["indices"]


def test_frames_become_pixels_as_the_authors_made_them_without_antialias() -> None:
    reference = tensors(golden("vtimellm-open") / "preprocess.safetensors")
    spec = PixelSpec(size=224, fit="bicubic")
    squares = np.stack([resize(frame, spec) for frame in reference["raw_frames"].numpy()])
    pixel_values = torch.from_numpy(normalize(squares, spec))[:, :, ::7, ::7]
    assert_near(pixel_values, reference["noaa_sub7"], "pixel_values")
    assert (pixel_values - reference["pixel_values_sub7"]).abs().max() > 1e-2, "these are with antialias"


@pytest.mark.parametrize("features", ["half", "float"])
def test_a_clip_is_answered_about_in_two_turns_as_by_the_original(family: Family, features: str) -> None:
    dialogue = read_json(golden("vtimellm-e2e") / "dialogue.json")
    clip, encoded = watch(family, golden("vtimellm-e2e") / "clip.mp4")
    assert encoded.features["video"].dtype == torch.float16
    if features == "float":
        exact = tensors(golden("vtimellm-e2e") / "expected.safetensors")["features"]
        encoded = replace(encoded, features={"video": exact})
    offline, turns = Offline(family), []
    for turn in dialogue["turns"]:
        turns.append(Turn(role="user", text=turn["question"]))
        conversation = Conversation(clips=(clip,), turns=tuple(turns))
        params = SamplingParams(temperature=0, max_tokens=len(turn["generated_ids"]))
        offline.add("answer", conversation, [encoded], params)
        answer = "".join(output.text for output in offline.outputs())
        assert answer == turn["text"]
        turns.append(Turn(role="assistant", text=answer))


def test_the_command_line_answers_as_the_original(tmp_path: Path) -> None:
    folder = tmp_path / "vtimellm"
    shutil.copytree(golden("vtimellm-e2e"), folder)
    dialogue = read_json(folder / "dialogue.json")
    (folder / "generation_config.json").write_text(json.dumps({"do_sample": False, "max_new_tokens": 16}))
    command = [sys.executable, "-m", "model", folder / "clip.mp4", *dialogue["questions"]]
    command += ["--family", "vtimellm", "--checkpoint", folder]
    run = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert run.stdout.splitlines() == [turn["text"] for turn in dialogue["turns"]], run.stderr


def norms_are_finer(network: VTimeLLMNetwork) -> None:
    for module in network.vision_tower.modules():
        if isinstance(module, nn.LayerNorm):
            module.eps = 1e-6


def activation_is_exact(network: VTimeLLMNetwork) -> None:
    for layer in network.vision_tower.encoder.layers:
        layer.mlp.activation_fn = nn.GELU()


def a_layer_is_missing(network: VTimeLLMNetwork) -> None:
    del network.vision_tower.encoder.layers[-1]


def last_norm_is_missing(network: VTimeLLMNetwork) -> None:
    network.vision_tower.post_layernorm.forward = lambda tokens: tokens  # type: ignore[assignment, method-assign]


def embeddings_are_normalised(network: VTimeLLMNetwork) -> None:
    embed = network.vision_tower.forward
    network.vision_tower.forward = lambda frames: functional.normalize(embed(frames), dim=-1)  # type: ignore[method-assign]


def frames_are_shifted(network: VTimeLLMNetwork) -> None:
    embed = network.vision_tower.forward
    network.vision_tower.forward = lambda frames: embed(frames.roll(1, 0))  # type: ignore[method-assign]


@pytest.mark.parametrize(
    "mistake",
    [
        norms_are_finer,
        activation_is_exact,
        a_layer_is_missing,
        last_norm_is_missing,
        embeddings_are_normalised,
        frames_are_shifted,
    ],
)
def test_a_deliberate_mistake_is_detected(mistake: Callable[[VTimeLLMNetwork], None]) -> None:
    folder = golden("vtimellm-open")
    wrong = load_family("vtimellm", checkpoint=folder)
    assert isinstance(wrong.network, VTimeLLMNetwork)
    pixel_values = tensors(folder / "inputs.safetensors")["pixel_values"].unsqueeze(0)
    expected = tensors(folder / "expected.safetensors")["features"]
    assert_near(wrong.encode(pixel_values)["video"][0], expected, "features")
    mistake(wrong.network)
    with pytest.raises(AssertionError, match="off by"):
        assert_near(wrong.encode(pixel_values)["video"][0], expected, "features")


def test_an_adapter_that_is_left_out_or_doubled_is_detected(tmp_path: Path) -> None:
    for number, scale in enumerate((0.0, 2.0)):
        folder = tmp_path / str(number)
        shutil.copytree(golden("vtimellm-open"), folder, copy_function=shutil.copyfile)
        weights: dict[str, Tensor] = tensors(folder / "weights.safetensors")
        weights |= {
            key: tensor * scale for key, tensor in weights.items() if key.startswith("stage3.") and "lora_B" in key
        }
        (folder / "weights.safetensors").unlink()
        save_file(weights, folder / "weights.safetensors")
        verification = Verification(folder, family="vtimellm", dtype="float32", device="cpu", quantization=None)
        bad = {row.name for row in verification.rows() if row.is_bad}
        assert {"merged_layers_0_q_proj", "merged_layers_1_down_proj", "logits_first"} <= bad

"""Damaged inputs of a verification are refused with one sentence, and never run without end."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from model.verification.answer_length import stated_limit
from model.verification.verification import Verification
from model.weights import WeightsError
from tests.parity.goldens import read_json, tensors
from tests.published import golden

WITH_PIXELS = [
    ("video-llava", "video-llava-open"),
    ("video-llava-hf", "video-llava-hf-open"),
    ("vtimellm", "vtimellm-open"),
    ("video-chatgpt", "video-chatgpt-open"),
    ("video-llama", "video-llama-open"),
    ("imagebind-llm", "imagebind-llm-open"),
    ("mobillama", "mobillama-open"),
    ("videochat", "videochat-open"),
]
WITH_CLIP = [
    ("video-llava", "video-llava-e2e"),
    ("video-llava-hf", "video-llava-hf-e2e"),
    ("vtimellm", "vtimellm-e2e"),
    ("video-llama", "video-llama-e2e"),
    ("imagebind-llm", "imagebind-llm-e2e"),
    ("videochat", "videochat-e2e"),
]
WITH_DIALOGUE = [
    *(each for each in WITH_CLIP if each[0] not in {"vtimellm", "video-llava-hf", "videochat"}),
    ("mobillama", "mobillama-e2e"),
    ("videochat", "videochat-open"),
]
"""The slower sets are left out whose dialogue the same code reads as another's."""
PIXELS = ("pixel_values", "pixel_values_video", "video")


def copied(name: str, tmp_path: Path) -> Path:
    return shutil.copytree(golden(name), tmp_path / "reference", copy_function=shutil.copyfile)


def refusal(folder: Path, family: str) -> str:
    verification = Verification(folder, family=family, dtype="float32", device="cpu", quantization=None)
    with pytest.raises(WeightsError) as refused:
        list(verification.rows())
    assert "\n" not in str(refused.value)
    return str(refused.value)


@pytest.mark.parametrize(("family", "name"), WITH_CLIP)
def test_a_clip_that_cannot_be_decoded_is_refused(family: str, name: str, tmp_path: Path) -> None:
    pytest.importorskip("av", reason="decoding needs PyAV")
    folder = copied(name, tmp_path)
    clip = folder / "clip.mp4"
    for content in (b"", b"no video", clip.read_bytes()[:2000]):
        clip.write_bytes(content)
        assert refusal(folder, family).startswith(f"{clip} cannot be used. ")


def ids_of(inputs: Mapping[str, Tensor]) -> str:
    return next(name for name in ("input_ids", "prompt_ids", "video_segment_0_ids") if name in inputs)


@pytest.mark.parametrize(("family", "name"), [each for each in WITH_PIXELS if each[0] != "videochat"])
def test_ids_beyond_the_vocabulary_and_ids_of_other_shapes_are_refused(family: str, name: str, tmp_path: Path) -> None:
    folder = copied(name, tmp_path)
    inputs = tensors(folder / "inputs.safetensors")
    key = ids_of(inputs)
    beyond, negative = inputs[key].clone(), inputs[key].clone()
    beyond[0, -1], negative[0, -1] = 10**6, -7
    for ids, said in (
        (beyond, "beyond the"),
        (negative, "the ids of the model are|do not fit"),
        (inputs[key][:, :0].contiguous(), "must be whole numbers"),
        (inputs[key][0].contiguous(), "must be whole numbers"),
        (inputs[key].float(), "must be whole numbers"),
    ):
        save_file({**inputs, key: ids}, folder / "inputs.safetensors")
        assert any(part in refusal(folder, family) for part in said.split("|"))


@pytest.mark.parametrize(("family", "name"), [each for each in WITH_PIXELS if each[0] != "mobillama"])
def test_pixels_of_another_size_are_refused_or_differ(family: str, name: str, tmp_path: Path) -> None:
    folder = copied(name, tmp_path)
    inputs = tensors(folder / "inputs.safetensors")
    for key in inputs.keys() & set(PIXELS):
        for wrong in (inputs[key][..., :13].contiguous(), inputs[key].flatten(), inputs[key][..., :0].contiguous()):
            save_file({**inputs, key: wrong}, folder / "inputs.safetensors")
            assert_refused_or_different(folder, family)


def assert_refused_or_different(folder: Path, family: str) -> None:
    verification = Verification(folder, family=family, dtype="float32", device="cpu", quantization=None)
    try:
        assert any(row.is_bad for row in verification.rows())
    except WeightsError as error:
        assert str(error).startswith(f"The inputs in {folder} do not fit the model")


@pytest.mark.parametrize(("family", "name"), [each for each in WITH_PIXELS if each[0] != "mobillama"])
def test_another_number_of_frames_is_refused_or_differs(family: str, name: str, tmp_path: Path) -> None:
    folder = copied(name, tmp_path)
    inputs = tensors(folder / "inputs.safetensors")
    key = next(key for key in PIXELS if key in inputs)
    axis = 0 if key == "pixel_values" and family != "video-llama" else 1
    save_file({**inputs, key: torch.cat((inputs[key], inputs[key] + 1), axis)}, folder / "inputs.safetensors")
    assert_refused_or_different(folder, family)


@pytest.mark.parametrize(("family", "name"), WITH_DIALOGUE)
def test_values_of_a_wrong_type_in_a_dialogue_are_refused(family: str, name: str, tmp_path: Path) -> None:
    folder = copied(name, tmp_path)
    dialogue = read_json(folder / "dialogue.json")
    for key, wrong in (
        ("turns", 5),
        ("turns", ["a"]),
        ("questions", [1]),
        ("questions", "Why?"),
        ("system", None),
        ("prompts", [5]),
        ("question", 5),
        ("input_ids", ["a"]),
        ("generated_ids", 7),
        ("segment_ids", [1]),
        ("text", None),
        ("weights", {"Video": "much"}),
        ("slots", "video"),
        ("conversations", {"vicuna": 5}),
        ("conversations", {"unknown": {}}),
        ("instruction", []),
        ("eos_case", 5),
        ("stop_cases", [5]),
    ):
        spoiled = replaced(dialogue, key, wrong)
        if spoiled != dialogue:
            (folder / "dialogue.json").write_text(json.dumps(spoiled))
            assert str(folder / "dialogue.json") in refusal(folder, family), (key, wrong)


def replaced(value: Any, key: str, wrong: Any) -> Any:
    """Put a wrong value in place of every value of a name."""
    if isinstance(value, list):
        return [replaced(each, key, wrong) for each in value]
    if not isinstance(value, dict):
        return value
    return {name: wrong if name == key else replaced(each, key, wrong) for name, each in value.items()}


@pytest.mark.parametrize(("family", "name"), [*WITH_PIXELS, ("video-llava", "video-llava-e2e")])
def test_a_limit_that_is_no_number_of_tokens_is_refused(family: str, name: str, tmp_path: Path) -> None:
    folder = copied(name, tmp_path)
    values = read_json(folder / "config.json")
    key = "max_gen_len" if family == "imagebind-llm" else "max_new_tokens"
    (folder / "config.json").write_text(json.dumps({**values, "generation": {key: 0}}))
    assert f"{key} in {folder / 'config.json'} must be a whole number from 1 to 4,096" in refusal(folder, family)


@pytest.mark.parametrize("limit", [0, -1, "9", 1.5, True, 10**9])
def test_only_a_positive_number_is_a_limit(limit: object, tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"generation": {"max_new_tokens": limit}}))
    with pytest.raises(WeightsError, match=r"must be a whole number from 1 to 4,096, not "):
        stated_limit(path, "max_new_tokens")
    path.write_text(json.dumps({"generation": 5}))
    with pytest.raises(WeightsError, match="must be an object, not 5"):
        stated_limit(path, "max_new_tokens")


@pytest.mark.parametrize("name", ["video-llava", "video-llava-hf", "vtimellm", "video-chatgpt", "video-llama"])
def test_a_question_that_is_no_text_is_refused(name: str, tmp_path: Path) -> None:
    folder = copied(f"{name}-open", tmp_path)
    values = read_json(folder / "config.json")
    (folder / "config.json").write_text(json.dumps({**values, "question": 5}))
    assert f"question in {folder / 'config.json'} must be a text, not 5." in refusal(folder, name)


@pytest.mark.parametrize("tensor", [torch.tensor(5), torch.zeros(16), torch.zeros(0, dtype=torch.long)])
def test_an_expected_answer_of_another_type_or_shape_differs(tensor: Tensor, tmp_path: Path) -> None:
    folder = copied("vtimellm-open", tmp_path)
    expected = tensors(folder / "expected.safetensors")
    for key, wrong in (("greedy_ids", tensor), ("logits_first", tensor), ("features", torch.zeros(0))):
        save_file({**expected, key: wrong}, folder / "expected.safetensors")
        verification = Verification(folder, family="vtimellm", dtype="float32", device="cpu", quantization=None)
        assert [row.name for row in verification.rows() if row.is_bad] == [key]

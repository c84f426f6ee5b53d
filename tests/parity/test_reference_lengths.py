"""References with answers of any length are verified: the reference's own length decides, then `config.json`."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from model.checkpoints.folder import write_folder
from model.families import family_module
from model.verification.comparison import Row
from model.verification.verification import Verification
from tests.parity.goldens import read_json, tensors
from tests.published import golden

OPEN_SETS = [
    ("video-llava", "video-llava-open"),
    ("video-llava-hf", "video-llava-hf-open"),
    ("vtimellm", "vtimellm-open"),
    ("video-chatgpt", "video-chatgpt-open"),
    ("video-llama", "video-llama-open"),
    ("imagebind-llm", "imagebind-llm-open"),
    ("mobillama", "mobillama-open"),
    ("videochat", "videochat-open"),
]
CLIP_SETS = [
    ("video-llava", "video-llava-e2e"),
    ("video-llava-hf", "video-llava-hf-e2e"),
    ("vtimellm", "vtimellm-e2e"),
    ("video-llama", "video-llama-e2e"),
    ("imagebind-llm", "imagebind-llm-e2e"),
    ("mobillama", "mobillama-e2e"),
]
LIMITS = {"imagebind-llm": "max_gen_len"}


def copied(name: str, tmp_path: Path) -> Path:
    return shutil.copytree(golden(name), tmp_path / "reference", copy_function=shutil.copyfile)


def state_limit(folder: Path, family: str, limit: int | None) -> None:
    """Change the limit in `config.json`, or remove it."""
    path = folder / "config.json"
    values = read_json(path)
    values.pop("max_new_tokens", None)
    values.pop("generation", None)
    if limit is not None:
        values["generation"] = {LIMITS.get(family, "max_new_tokens"): limit}
    path.write_text(json.dumps(values))


def of_answer(name: str) -> bool:
    return name.rpartition(".")[2].startswith(("greedy_ids", "generated_ids", "greedy_logits"))


def cut(name: str, tensor: Tensor, length: int) -> Tensor:
    if not of_answer(name):
        return tensor
    return (tensor[..., :length] if not tensor.is_floating_point() else tensor[:length]).contiguous()


def cut_reference(folder: Path, length: int) -> None:
    """Cut every answer, as a program with a lower limit gives it."""
    path = folder / "expected.safetensors"
    save_file({name: cut(name, tensor, length) for name, tensor in tensors(path).items()}, path)
    path = folder / "dialogue.json"
    if path.is_file():
        path.write_text(json.dumps(shortened(read_json(path), length)))


def shortened(value: Any, length: int) -> Any:
    """Cut the ids of a dialogue. Its texts and beams are left out: they do not follow from shorter ids."""
    if isinstance(value, list):
        return [shortened(each, length) for each in value]
    if not isinstance(value, dict):
        return value
    kept = {key: each for key, each in value.items() if not key.startswith("beam") or "generated_ids" not in value}
    if "generated_ids" in value and kept.pop("text", None) is not None:
        kept["generated_ids"] = value["generated_ids"][:length]
    return {key: each if key == "generated_ids" else shortened(each, length) for key, each in kept.items()}


def bad_rows(folder: Path, family: str) -> list[Row]:
    verification = Verification(folder, family=family, dtype="float32", device="cpu", quantization=None)
    return [row for row in verification.rows() if row.is_bad]


@pytest.mark.parametrize(("family", "name"), OPEN_SETS)
def test_a_shorter_reference_is_verified(family: str, name: str, tmp_path: Path) -> None:
    folder = copied(name, tmp_path)
    cut_reference(folder, 8)
    without_second_turns(folder)
    state_limit(folder, family, None)
    assert bad_rows(folder, family) == []


def without_second_turns(folder: Path) -> None:
    """Leave out turns that contain a text of the whole answer."""
    path = folder / "dialogue.json"
    if path.is_file():
        values = read_json(path)
        values["questions"], values["turns"] = values["questions"][:1], values["turns"][:1]
        path.write_text(json.dumps(values))
        expected = tensors(folder / "expected.safetensors")
        kept = {key: tensor for key, tensor in expected.items() if not key.startswith("turn2")}
        save_file(kept, folder / "expected.safetensors")


@pytest.mark.parametrize(("family", "name"), [each for each in OPEN_SETS if each[0] not in {"videochat", "mobillama"}])
def test_a_longer_reference_is_verified(family: str, name: str, tmp_path: Path) -> None:
    folder = copied(name, tmp_path)
    expected = tensors(folder / "expected.safetensors")
    (folder / "expected.safetensors").unlink()
    state_limit(folder, family, 24)
    longer = computed(folder, family)
    for key in filter(of_answer, expected):
        length = expected[key].shape[-1]
        assert longer[key].shape[-1] == (24 if length == 16 else length)
        assert torch.equal(longer[key][..., :length], expected[key])
    state_limit(folder, family, None)
    save_file(
        {**expected, **{key: longer[key] for key in filter(of_answer, expected)}}, folder / "expected.safetensors"
    )
    assert bad_rows(folder, family) == []
    assert computed(folder, family).keys() <= expected.keys()


def computed(folder: Path, family: str) -> Mapping[str, Tensor]:
    verification = Verification(folder, family=family, dtype="float32", device="cpu", quantization=None)
    list(verification.rows())
    return verification.tensors


@pytest.mark.parametrize(("family", "name"), CLIP_SETS)
def test_a_converted_folder_with_a_shorter_reference_is_verified(family: str, name: str, tmp_path: Path) -> None:
    if family != "mobillama":
        pytest.importorskip("av", reason="decoding needs PyAV")
    reference, mine = copied(name, tmp_path), tmp_path / "mine"
    cut_reference(reference, 5)
    checkpoint, origin = family_module(family).read_source(reference, parts={}, ignored=(), dtype=None)
    write_folder(mine, checkpoint, origin=origin, report=lambda *_: None)
    for file in ("expected.safetensors", "dialogue.json", "clip.mp4", "clip.json"):
        if (reference / file).is_file():
            shutil.copyfile(reference / file, mine / file)
    # Texts of first turns are left out, so later turns differ: they contain a shorter answer.
    bad = [row.name for row in bad_rows(mine, family) if "turn2" not in row.name]
    assert bad == []


@pytest.mark.parametrize("name", ["mobillama-open", "mobillama-e2e"])
def test_an_answer_that_goes_on_where_the_reference_ended_by_itself_differs(name: str, tmp_path: Path) -> None:
    folder = copied(name, tmp_path)
    path = folder / "expected.safetensors"
    expected = tensors(path)
    key = next(key for key, tensor in expected.items() if of_answer(key) and len(tensor) > 11)
    expected[key] = torch.cat((expected[key][:4], torch.tensor([2])))
    save_file(expected, path)
    (row,) = [row for row in bad_rows(folder, "mobillama") if row.name == key]
    assert row.note == "the first 4 of 5 equal"

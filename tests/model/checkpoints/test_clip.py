"""Reading a CLIP from OpenAI's archive, from a folder in Hugging Face's layout, or from both."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from model.checkpoints.clip import ARCHIVE_PART, FOLDER_PART, read_clip, read_clip_config
from model.checkpoints.openai_clip import read_openai_clip
from model.checkpoints.published import PublishedModel
from model.weights import WeightsError
from tests.model.checkpoints.test_openai_clip import SIZES, written

MODEL = PublishedModel("Seer", ARCHIVE_PART, FOLDER_PART)
VISION = {"image_size": 8, "patch_size": 4, "hidden_size": 64, "num_hidden_layers": 2}
VISION |= {"num_attention_heads": 1, "intermediate_size": 96}

Change = Callable[[dict[str, Tensor]], object]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The archive, and the same CLIP in a folder in 32 bits, with a stub of the text half."""
    (tmp_path / "clip").mkdir()
    published(tmp_path)
    written(tmp_path / "clip" / "ViT-L-14.pt")
    return tmp_path


def published(
    folder: Path, change: Change = lambda _: None, vision: Mapping[str, object] = MappingProxyType({})
) -> None:
    """Write the folder of CLIP with a change."""
    tensors = read_openai_clip(written(folder / "original.pt"))
    whole = {key: tensor.float().contiguous() for key, tensor in tensors.items()}
    whole |= {"logit_scale": torch.ones(()), "vision_model.embeddings.position_ids": torch.arange(5)}
    change(whole)
    inner = folder / "clip-vit-large-patch14"
    inner.mkdir(exist_ok=True)
    save_file(whole, inner / "model.safetensors")
    (inner / "config.json").write_text(json.dumps({"vision_config": VISION | dict(vision)}))


def refusal(folder: Path) -> str:
    with pytest.raises(WeightsError) as refused:
        read_clip(MODEL, MODEL.find(folder, {}), ignored=())
    return str(refused.value)


@pytest.mark.parametrize("only", ["archive", "vision", "both"])
def test_either_part_gives_the_same_model(folder: Path, only: str) -> None:
    paths = {name: path for name, path in MODEL.find(folder, {}).items() if only in (name, "both")}
    sizes, tensors = read_clip(MODEL, paths, ignored=())
    assert sizes == SIZES
    expected = read_openai_clip(folder / "clip" / "ViT-L-14.pt")
    assert tensors.keys() == expected.keys()
    assert all(torch.equal(tensors[key].float(), expected[key].float()) for key in expected)


def test_one_of_both_is_needed(tmp_path: Path) -> None:
    assert refusal(tmp_path).startswith("There is neither clip/ViT-L-14.pt nor a folder of clip-vit-large-patch14")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda state: state["visual_projection.weight"].add_(1), "they differ in visual_projection.weight"),
        (lambda state: state.pop("vision_model.pre_layrnorm.bias"), "they differ in vision_model.pre_layrnorm.bias"),
        (lambda state: state.pop("visual_projection.weight"), "patch14 lacks visual_projection.weight"),
        (lambda state: state.update({"visual.proj": torch.ones(1)}), "a key that is not part of Seer: visual.proj"),
    ],
)
def test_a_folder_that_differs_from_the_archive_is_refused(folder: Path, change: Change, said: str) -> None:
    published(folder, change)
    assert said in refusal(folder)


@pytest.mark.parametrize(
    ("vision", "said"),
    [
        ({"num_hidden_layers": 3}, "they differ in sizes"),
        ({"hidden_act": "gelu"}, "another CLIP than Seer's: its activation is gelu"),
        ({"layer_norm_eps": 1e-6}, "another CLIP than Seer's: the layer_norm_eps"),
    ],
)
def test_a_folder_of_another_clip_is_refused(folder: Path, vision: dict[str, object], said: str) -> None:
    published(folder, vision=vision)
    assert said in refusal(folder)


@pytest.mark.parametrize("config", [{}, {"vision_config": []}, {"vision_config": {"image_size": 8}}])
def test_a_description_of_something_else_is_refused(tmp_path: Path, config: dict[str, object]) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(WeightsError, match="it is not CLIP's"):
        read_clip_config(tmp_path, model="Seer")

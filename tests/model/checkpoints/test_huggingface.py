"""Reading a LLaMA in Hugging Face's layout."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from model.checkpoints.huggingface import read_llama_config, read_weights
from model.weights import WeightsError

TENSORS = {"model.norm.weight": torch.ones(3), "lm_head.weight": torch.arange(6.0).reshape(2, 3)}
CONFIG = {
    "vocab_size": 32001,
    "hidden_size": 4096,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "intermediate_size": 11008,
    "rms_norm_eps": 1e-6,
}


def save(path: Path, tensors: dict[str, Tensor]) -> None:
    if path.suffix == ".bin":
        torch.save(tensors, path)
    else:
        save_file(tensors, path)


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_one_file_is_read(tmp_path: Path, name: str) -> None:
    save(tmp_path / name, TENSORS)
    read = read_weights(tmp_path)
    assert read.keys() == TENSORS.keys()
    assert all(torch.equal(read[key], TENSORS[key]) for key in TENSORS)


@pytest.fixture(params=["model.safetensors", "pytorch_model.bin"])
def sharded(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    stem, _, ending = str(request.param).partition(".")
    places = {}
    for number, (key, tensor) in enumerate(TENSORS.items(), start=1):
        places[key] = f"{stem}-{number:05}-of-00002.{ending}"
        save(tmp_path / places[key], {key: tensor})
    (tmp_path / f"{request.param}.index.json").write_text(json.dumps({"weight_map": places}))
    return tmp_path


def test_shards_are_joined(sharded: Path) -> None:
    assert read_weights(sharded).keys() == TENSORS.keys()


def test_a_missing_shard_is_named(sharded: Path) -> None:
    shard = sorted(sharded.glob("*-00002-of-00002.*"))[0]
    shard.unlink()
    with pytest.raises(WeightsError, match=f"lacks {shard.name}, which its index names"):
        read_weights(sharded)


def test_shards_that_are_swapped_are_named(sharded: Path) -> None:
    first, second = (sorted(sharded.glob(f"*-0000{number}-of-00002.*"))[0] for number in (1, 2))
    content = first.read_bytes()
    first.write_bytes(second.read_bytes())
    second.write_bytes(content)
    with pytest.raises(WeightsError, match=f"{first.name} .* lacks "):
        read_weights(sharded)


def test_a_shard_that_lacks_a_tensor_of_the_index_is_named(sharded: Path) -> None:
    shard = sorted(sharded.glob("*-00002-of-00002.*"))[0]
    save(shard, {"other": torch.ones(1)})
    with pytest.raises(WeightsError, match=rf"{shard.name} .* lacks lm_head\.weight"):
        read_weights(sharded)


def test_an_index_cannot_lead_out_of_its_folder(tmp_path: Path) -> None:
    save_file(TENSORS, tmp_path / "outside.safetensors")
    inside = tmp_path / "llama"
    inside.mkdir()
    (inside / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "../outside.safetensors"}}))
    with pytest.raises(WeightsError, match=r"lacks \.\./outside"):
        read_weights(inside)


def test_a_folder_without_weights_is_named(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"neither model\.safetensors nor pytorch_model\.bin"):
        read_weights(tmp_path)


def test_sizes_are_read_from_the_config(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    sizes = read_llama_config(tmp_path)
    assert (sizes.vocab_size, sizes.depth, sizes.max_positions) == (32001, 32, 2048)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"num_key_value_heads": 8}, "later generation"),
        ({"rope_theta": 500000.0}, "later generation"),
        ({"rope_parameters": {"rope_theta": 500000.0}}, "later generation"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "later generation"),
        ({"hidden_size": None}, "lacks 'hidden_size'"),
    ],
)
def test_another_kind_of_network_is_refused(tmp_path: Path, changed: dict[str, object], message: str) -> None:
    values = {key: value for key, value in (CONFIG | changed).items() if value is not None}
    (tmp_path / "config.json").write_text(json.dumps(values))
    with pytest.raises(WeightsError, match=message):
        read_llama_config(tmp_path)


@pytest.mark.parametrize(
    "values",
    [
        *({"hidden_act": "gelu"}, {"tie_word_embeddings": True}, {"model_type": "mistral"}, {"attention_bias": True}),
        *({"mlp_bias": True}, {"head_dim": 64}, {"sliding_window": 4096}, {"partial_rotary_factor": 0.5}),
        *({"hidden_act": 5}, {"rope_theta": None}, {"rope_theta": 10**400}, {"rope_parameters": [1]}),
        *({"rope_parameters": {"rope_type": "linear"}}, {"rms_norm_eps": 0}, {"num_attention_heads": 4.0}),
    ],
)
def test_another_network_of_the_same_sizes_is_refused(tmp_path: Path, values: dict[str, object]) -> None:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG | values))
    with pytest.raises(WeightsError):
        read_llama_config(tmp_path)


def test_deeply_nested_json_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("[" * 100_000)
    with pytest.raises(WeightsError, match="is not a JSON file"):
        read_llama_config(tmp_path)


@pytest.mark.parametrize("name", [5, None, ["a"]])
def test_an_index_with_other_names_than_strings_is_refused(sharded: Path, name: object) -> None:
    index = next(sharded.glob("*.index.json"))
    index.write_text(json.dumps({"weight_map": {"lm_head.weight": name}}))
    with pytest.raises(WeightsError, match="names no shards"):
        read_weights(sharded)

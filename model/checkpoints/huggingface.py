"""Reads a model as Hugging Face lays it out: a folder of `config.json` and one file of weights or many."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from model.checkpoints.json_object import read_object
from model.checkpoints.torch_file import read_torch_file
from model.networks.llama import DecoderConfig
from model.weights import WeightsError, read_safetensors

Reader = Callable[[Path], dict[str, Tensor]]
_LAYOUTS: tuple[tuple[str, Reader], ...] = (
    ("model.safetensors", read_safetensors),
    ("pytorch_model.bin", read_torch_file),
)
ROPE_THETA = 10000.0


def read_weights(folder: Path) -> dict[str, Tensor]:
    """Every tensor of the folder, mapped; safetensors where there are both kinds.

    Raises:
        WeightsError: the folder has no weights, or a file of them is absent, damaged or incomplete.
    """
    for name, read in _LAYOUTS:
        index = folder / f"{name}.index.json"
        if index.is_file():
            return _read_shards(index, read)
        if (folder / name).is_file():
            return read(folder / name)
    raise WeightsError(
        f"{folder} holds no weights: it has neither model.safetensors nor pytorch_model.bin, whole or in shards."
    )


def read_llama_config(folder: Path) -> DecoderConfig:
    """The sizes in the folder's `config.json`.

    Raises:
        WeightsError: there is none, or it describes another kind of network than LLaMA's first generation.
    """
    values = read_object(folder / "config.json")
    try:
        sizes = llama_sizes(values)
    except KeyError as error:
        raise WeightsError(f"The config.json of {folder} lacks {error}; it is no LLaMA's.") from error
    if values.get("num_key_value_heads", sizes.num_heads) != sizes.num_heads or _rope(values) != ROPE_THETA:
        raise WeightsError(f"{folder} holds a LLaMA of a later generation; the model was trained with the first.")
    return sizes


def llama_sizes(values: Mapping[str, Any]) -> DecoderConfig:
    """A LLaMA's sizes under Hugging Face's names.

    Raises:
        KeyError: one is missing.
    """
    return DecoderConfig(
        vocab_size=values["vocab_size"],
        width=values["hidden_size"],
        depth=values["num_hidden_layers"],
        num_heads=values["num_attention_heads"],
        mlp_width=values["intermediate_size"],
        max_positions=values.get("max_position_embeddings", 2048),
        rms_eps=values["rms_norm_eps"],
    )


def _read_shards(index: Path, read: Reader) -> dict[str, Tensor]:
    places = read_object(index).get("weight_map")
    if not isinstance(places, dict) or not places:
        raise WeightsError(f"{index} names no shards.")
    tensors: dict[str, Tensor] = {}
    for name in sorted(set(places.values())):
        if Path(name).name != name or not (index.parent / name).is_file():
            raise WeightsError(f"{index.parent} lacks {name}, which its index names. Download the rest of the folder.")
        tensors |= read(index.parent / name)
    _check_complete(index, places, tensors)
    return tensors


def _check_complete(index: Path, places: Mapping[str, str], tensors: Mapping[str, Tensor]) -> None:
    if missing := sorted(places.keys() - tensors.keys()):
        raise WeightsError(f"{places[missing[0]]} in {index.parent} lacks {missing[0]}. Download it again.")


def _rope(values: Mapping[str, Any]) -> float:
    parameters = values.get("rope_parameters") or {}
    if values.get("rope_scaling"):
        return 0.0
    return float(values.get("rope_theta", parameters.get("rope_theta", ROPE_THETA)))

"""Reads a model in Hugging Face's layout: a folder of `config.json` and one or more files of weights."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from model.checkpoints.json_object import read_object
from model.checkpoints.torch_file import read_torch_file
from model.networks.llama import DecoderConfig
from model.networks.sizes import shown
from model.weights import WeightsError, read_safetensors

TensorReader = Callable[[Path], dict[str, Tensor]]
_LAYOUTS: tuple[tuple[str, TensorReader], ...] = (
    ("model.safetensors", read_safetensors),
    ("pytorch_model.bin", read_torch_file),
)
ROPE_THETA = 10000.0
_MAX_BASE = 1e12
_SETTINGS: dict[str, tuple[object, ...]] = {
    "model_type": ("llama", "llava", "VTimeLLM"),
    "hidden_act": ("silu",),
    "tie_word_embeddings": (False, None),
    "attention_bias": (False, None),
    "mlp_bias": (False, None),
    "sliding_window": (None,),
    "partial_rotary_factor": (1.0, None),
    "quantization_config": (None,),
}
"""Settings that would make another network of the same sizes, and their values in every LLaMA that was published."""


def read_weights(folder: Path) -> dict[str, Tensor]:
    """Return every tensor of the folder, mapped; reads safetensors if there are both kinds of file.

    Raises:
        WeightsError: the folder has no weights, or a file of weights is absent, damaged or incomplete.
    """
    for name, read in _LAYOUTS:
        index = folder / f"{name}.index.json"
        if index.is_file():
            return _read_shards(index, read)
        if (folder / name).is_file():
            return read(folder / name)
    raise WeightsError(
        f"{folder} holds no weights: it has neither model.safetensors nor pytorch_model.bin, in one file or in shards."
    )


def read_llama_config(folder: Path) -> DecoderConfig:
    """Return the sizes in the folder's `config.json`.

    Raises:
        WeightsError: there is no such file, or it does not describe a first-generation LLaMA.
    """
    return first_llama(read_object(folder / "config.json"), folder)


def first_llama(values: Mapping[str, Any], folder: Path, *, key_value_heads: bool = True) -> DecoderConfig:
    """Return the sizes of a LLaMA, after a check that no other setting makes it another network.

    Args:
        values: of its `config.json`.
        folder: that has it, for error messages.
        key_value_heads: whether the number of heads with keys and values of their own is checked.

    Raises:
        WeightsError: a size is missing or impossible, or the settings are not those of a first-generation LLaMA.
    """
    try:
        sizes = llama_sizes(values)
    except KeyError as error:
        raise WeightsError(f"The config.json of {folder} lacks {error}; it is not a LLaMA's.") from error
    except ValueError as error:
        raise WeightsError(f"The config.json of {folder} is not a LLaMA's: {error}.") from error
    is_grouped = key_value_heads and values.get("num_key_value_heads") not in (None, sizes.num_heads)
    if is_grouped or rope_theta(values) != ROPE_THETA:
        raise WeightsError(f"{folder} holds a LLaMA of a later generation; the model was trained with the first.")
    allowed = {**_SETTINGS, "head_dim": (None, sizes.width // sizes.num_heads)}
    for name, choices in allowed.items():
        if name in values and values[name] not in choices:
            raise WeightsError(
                f"{folder} holds another language model than a LLaMA of the first generation: the {name} in its "
                f"config.json is {shown(values[name])}."
            )
    return sizes


def llama_sizes(values: Mapping[str, Any]) -> DecoderConfig:
    """Convert a LLaMA's sizes from Hugging Face's names.

    Raises:
        KeyError: a size is missing.
        ValueError: a size is impossible.
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


def _read_shards(index: Path, read: TensorReader) -> dict[str, Tensor]:
    files = read_object(index).get("weight_map")
    if not isinstance(files, dict) or not files or not all(isinstance(name, str) for name in files.values()):
        raise WeightsError(f"{index} names no shards.")
    tensors: dict[str, Tensor] = {}
    for name in sorted(set(files.values())):
        if Path(name).name != name or not (index.parent / name).is_file():
            raise WeightsError(f"{index.parent} lacks {name}, which its index names. Download the rest of the folder.")
        shard = read(index.parent / name)
        if missing := sorted(key for key, file in files.items() if file == name and key not in shard):
            raise WeightsError(f"{name} in {index.parent} lacks {missing[0]}. Download it again.")
        tensors |= shard
    return tensors


def rope_theta(values: Mapping[str, Any]) -> float:
    """Return the base of the rotary frequencies in a LLaMA's `config.json`; 0 if they are scaled or it is no number."""
    parameters = values.get("rope_parameters") or {}
    is_scaled = not isinstance(parameters, dict) or parameters.get("rope_type", "default") != "default"
    if is_scaled or values.get("rope_scaling"):
        return 0.0
    base = values.get("rope_theta", parameters.get("rope_theta", ROPE_THETA))
    return float(base) if type(base) in (int, float) and 0 < base < _MAX_BASE else 0.0

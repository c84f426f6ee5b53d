"""A checkpoint folder: sizes in `config.json`, tensors in `*.safetensors`, sampling in `generation_config.json`.

Knows no family: what sizes and tensors mean, each family says itself.
"""

import json
from pathlib import Path
from typing import Any

from torch import Tensor

from model.engine.sampling_params import SamplingParams
from model.weights import WeightsError, read_safetensors


def read_sizes(checkpoint: Path) -> dict[str, Any]:
    """The object in `config.json`.

    Raises:
        WeightsError: there is none.
    """
    try:
        sizes = json.loads((checkpoint / "config.json").read_bytes())
    except (OSError, ValueError):
        sizes = None
    if not isinstance(sizes, dict):
        raise WeightsError(f"{checkpoint.name} has no config.json with the sizes of a model.")
    return sizes


def read_sampling(checkpoint: Path, *, published: SamplingParams) -> SamplingParams:
    """How answers are sampled by default: as `generation_config.json` says, or without one as `published`.

    Raises:
        WeightsError: the file cannot be used.
    """
    path = checkpoint / "generation_config.json"
    if not path.exists():
        return published
    try:
        values = json.loads(path.read_bytes())
        return SamplingParams(
            temperature=float(values.get("temperature", 1.0)) if values.get("do_sample") else 0.0,
            top_k=int(values.get("top_k", published.top_k)) if values.get("do_sample") else 0,
            top_p=float(values.get("top_p", 1.0)) if values.get("do_sample") else 1.0,
            repetition_penalty=float(values.get("repetition_penalty", 1.0)),
            max_tokens=int(values.get("max_new_tokens", published.max_tokens)),
        )
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise WeightsError(f"The generation_config.json of {checkpoint.name} cannot be used: {error}") from error


def read_tensors(checkpoint: Path) -> dict[str, Tensor]:
    """The tensors of all `*.safetensors` files, by their names there.

    Raises:
        WeightsError: a file is damaged, or a name comes twice.
    """
    tensors: dict[str, Tensor] = {}
    for path in sorted(checkpoint.glob("*.safetensors")):
        shard = read_safetensors(path)
        if twins := sorted(tensors.keys() & shard.keys()):
            raise WeightsError(f"{path.name} repeats {twins[0]}.")
        tensors |= shard
    return tensors

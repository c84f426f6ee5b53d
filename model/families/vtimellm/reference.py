"""Merges the tensors of a reference set, which holds the adapters of stages 2 and 3 beside the weights they change."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from model.checkpoints.json_object import read_object
from model.checkpoints.lora import build_adapter, fold, lora_sizes
from model.weights import WeightsError

PROJECTOR, STAGES = "stage1.", ("stage2.", "stage3.")
"""Prefixes of the keys of the published files of each stage."""


def merge_stages(
    tensors: Mapping[str, Tensor], folder: Path, *, dtype: torch.dtype | None = None
) -> Mapping[str, Tensor]:
    """Return the tensors of a folder with the adapters added to LLaMA, and without prefixes.

    Tensors of a folder without adapters are returned as they are.

    Args:
        tensors: of the folder.
        folder: whose `config.json` has the options of both adapters under `lora`.
        dtype: of the tensors that an adapter changes; None is their own.

    Raises:
        WeightsError: an adapter is incomplete, or of another model.
    """
    if not any(key.startswith((PROJECTOR, *STAGES)) for key in tensors):
        return tensors
    options = read_object(folder / "config.json").get("lora")
    if not isinstance(options, dict):
        raise WeightsError(f"The config.json of {folder} has no options of the adapters under `lora`.")
    read = {name: options[name] for name in ("r", "lora_alpha", "target_modules") if name in options}
    sizes = lora_sizes({"peft_type": "LORA", "bias": "none", **read}, origin=f"config.json of {folder.name}")
    adapters = [build_adapter(_under(prefix, tensors), sizes, name=prefix.rstrip(".")) for prefix in STAGES]
    plain = {key: tensor for key, tensor in tensors.items() if not key.startswith((PROJECTOR, *STAGES))}
    return fold(plain | _under(PROJECTOR, tensors), adapters, dtype=dtype)


def _under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): tensor for key, tensor in tensors.items() if key.startswith(prefix)}

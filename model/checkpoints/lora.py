"""Reads LoRA adapters in PEFT's layout and adds them to the weights that they were trained on (arXiv:2106.09685)."""

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from model.checkpoints.json_object import read_object
from model.checkpoints.torch_file import read_torch_file
from model.checkpoints.values import check_rounded, check_values
from model.weights import WeightsError

ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.bin"

_KEY = re.compile(r"base_model\.model\.(?P<module>.+)\.lora_(?P<half>[AB])\.weight")
_FIXED = {"peft_type": "LORA", "bias": "none"}
"""Options with the only value that is supported."""
_READ = {"r", "lora_alpha", "target_modules"}
_WITHOUT_EFFECT = {
    *("auto_mapping", "base_model_name_or_path", "revision", "task_type", "peft_version"),
    *("inference_mode", "init_lora_weights", "lora_dropout"),
}
"""Options that name things, or matter in training only."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LoraSizes:
    """The rank and the scale of an adapter, and the layers that it changes."""

    rank: int
    alpha: float
    target_modules: tuple[str, ...]
    """The last components of the changed layers' names, e.g. `q_proj`."""

    @property
    def scaling(self) -> float:
        """What the product of the two factors is multiplied by."""
        return self.alpha / self.rank


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Adapter:
    """One LoRA: for each changed weight, by its name in the base model, the factors A [r, in] and B [out, r]."""

    name: str
    """Names its origin in error messages."""
    scaling: float
    factors: Mapping[str, tuple[Tensor, Tensor]]

    def equals(self, other: "Adapter") -> bool:
        """Return whether two adapters change the same weights by the same values."""
        return (
            self.scaling == other.scaling
            and self.factors.keys() == other.factors.keys()
            and all(
                torch.equal(ours, theirs)
                for name, factors in self.factors.items()
                for ours, theirs in zip(factors, other.factors[name], strict=True)
            )
        )


def read_adapter(folder: Path) -> Adapter:
    """Read `adapter_config.json` and `adapter_model.bin` of a folder.

    Raises:
        WeightsError: a file is absent or damaged, an option is unknown or not supported, or a key or a shape does not
            follow from the options.
    """
    sizes = lora_sizes(read_object(folder / ADAPTER_CONFIG), origin=f"{ADAPTER_CONFIG} of {folder.name}")
    return build_adapter(read_torch_file(folder / ADAPTER_WEIGHTS), sizes, name=f"{folder.name}/{ADAPTER_WEIGHTS}")


def lora_sizes(options: Mapping[str, Any], *, origin: str) -> LoraSizes:
    """Read PEFT's options of a LoRA; an option that would change the result must be supported or unset.

    Args:
        options: the content of `adapter_config.json`.
        origin: names the file in error messages.

    Raises:
        WeightsError: an option is missing, impossible, unknown or not supported.
    """
    for option, value in options.items():
        if option in _FIXED and value != _FIXED[option]:
            raise WeightsError(f"The {origin} sets {option} to {value!r}; only {_FIXED[option]!r} is supported.")
        if option not in _FIXED.keys() | _READ | _WITHOUT_EFFECT and value not in (None, False, [], {}):
            raise WeightsError(f"The {origin} sets {option} to {value!r}, which is not supported.")
    if missing := sorted((_FIXED.keys() | _READ) - options.keys()):
        raise WeightsError(f"The {origin} lacks {missing[0]}; it does not describe a LoRA.")
    rank, alpha, targets = options["r"], options["lora_alpha"], options["target_modules"]
    is_valid = type(rank) is int and rank > 0 and type(alpha) in (int, float) and 0 < alpha < math.inf
    if not is_valid or not isinstance(targets, list) or not all(isinstance(target, str) for target in targets):
        raise WeightsError(f"The {origin} has an impossible r, lora_alpha or target_modules.")
    return LoraSizes(rank=rank, alpha=float(alpha), target_modules=tuple(targets))


def build_adapter(tensors: Mapping[str, Tensor], sizes: LoraSizes, *, name: str) -> Adapter:
    """Pair the factors of an adapter.

    Args:
        tensors: by PEFT's keys, `base_model.model.<layer>.lora_A.weight` and `.lora_B.weight`.
        sizes: of the adapter.
        name: names its origin in error messages.

    Raises:
        WeightsError: a key is unknown or of a layer that is not a target, a factor is missing, has another rank or is
            not one of finite numbers in floating point.
    """
    check_values(tensors, file=name)
    halves: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        found = _KEY.fullmatch(key)
        if found is None or found["module"].rpartition(".")[2] not in sizes.target_modules:
            raise WeightsError(f"{name} has a key that its adapter_config.json does not account for: {key}.")
        halves.setdefault(f"{found['module']}.weight", {})[found["half"]] = tensor
    for weight, pair in halves.items():
        if len(pair) != 2:
            raise WeightsError(f"{name} has only one of the two factors for {weight}. Download it again.")
        if any(factor.ndim != 2 for factor in pair.values()) or {len(pair["A"]), pair["B"].shape[1]} != {sizes.rank}:
            raise WeightsError(f"{name} has factors for {weight} that are not of rank {sizes.rank}.")
    _check_targets(halves, sizes, name)
    factors = {weight: (pair["A"], pair["B"]) for weight, pair in halves.items()}
    return Adapter(name=name, scaling=sizes.scaling, factors=factors)


def fold(weights: Mapping[str, Tensor], adapters: Iterable[Adapter], *, dtype: torch.dtype | None) -> dict[str, Tensor]:
    """Return the weights with each adapter added, one after the other: `W + alpha / r * B @ A`.

    The sums are computed in float32 and rounded once.

    Args:
        weights: of the base model; they are not changed.
        adapters: in the order in which they were trained.
        dtype: of the changed weights; None is each weight's own.

    Raises:
        WeightsError: an adapter changes a weight that the model lacks or that has another shape, it leaves out a
            layer that it changes elsewhere, or a sum does not fit into the dtype.
    """
    adapters = tuple(adapters)
    for adapter in adapters:
        _check_fit(weights, adapter)
    changed = {name for adapter in adapters for name in adapter.factors}
    folded = dict(weights)
    for name in sorted(changed):
        total = weights[name].float()
        for adapter in adapters:
            if name in adapter.factors:
                down, up = adapter.factors[name]
                total = total + (up.float() @ down.float()) * adapter.scaling
        folded[name] = total.to(dtype or weights[name].dtype)
        check_rounded(name, folded[name], file=" and ".join(adapter.name for adapter in adapters))
    return folded


def _check_targets(halves: Mapping[str, object], sizes: LoraSizes, name: str) -> None:
    """Refuse an adapter without a factor for one of its targets."""
    changed = {weight.removesuffix(".weight").rpartition(".")[2] for weight in halves}
    if missing := sorted(set(sizes.target_modules) - changed):
        raise WeightsError(f"{name} lacks the factors for {missing[0]}, which its adapter_config.json names.")


def _check_fit(weights: Mapping[str, Tensor], adapter: Adapter) -> None:
    kinds = {_kind(name) for name in adapter.factors}
    for name in sorted(name for name in weights if _kind(name) in kinds):
        if name not in adapter.factors:
            raise WeightsError(f"{adapter.name} lacks the factors for {name}. Download it again.")
    for name, (down, up) in adapter.factors.items():
        shape = [len(up), down.shape[1]]
        if name not in weights or list(weights[name].shape) != shape:
            found = f"is {list(weights[name].shape)} there" if name in weights else "does not exist there"
            raise WeightsError(
                f"{adapter.name} was trained on another model: it changes {name} {shape}, which {found}."
            )


def _kind(name: str) -> str:
    """Return the name of a weight without the number of its layer."""
    return re.sub(r"\.\d+\.", ".*.", name)

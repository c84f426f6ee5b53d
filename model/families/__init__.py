"""The registry of families: each folder here is one family, named like the family, with `_` for `-`.

The `family.py` of a folder defines:

- `load(*, checkpoint, device, dtype, quantization, role) -> Family`, which `serve` needs;
- `read_source(folder, *, parts, ignored, dtype)` for `convert`;
- `verify_stages(family, folder)` for `verify`;
- `SIZES` and `value_counts(size)` for `plan`.

All but `load` are optional. A folder may also have a module `releases`, which imports no torch, with `RELEASES`, a
tuple of `PublishedCheckpoint`, for `models known` and `pull`. Other modules hold what only this family has: its
network, its published files and its verification stages.
"""

import importlib
import importlib.util
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from model.checkpoints.catalogue import PublishedCheckpoint
from model.family_names import family_names as family_names
from model.role import Role

if TYPE_CHECKING:
    import torch

    from model.family import Family
    from model.quantization import Quantization


class UnknownFamily(ValueError):
    """No family has this name; the message lists the known names."""


def published_checkpoints() -> dict[str, tuple[PublishedCheckpoint, ...]]:
    """Return the published checkpoints of each family that names any; imports no torch."""
    return {
        name: importlib.import_module(f"{_package(name)}.releases").RELEASES
        for name in family_names()
        if importlib.util.find_spec(f"{_package(name)}.releases") is not None
    }


def load_family(
    name: str,
    *,
    checkpoint: Path | None = None,
    device: "torch.device | str" = "cpu",
    dtype: "torch.dtype | None" = None,
    quantization: "Quantization | None" = None,
    role: Role = "all",
) -> "Family":
    """Load one family on one device, ready for inference.

    Args:
        name: one of `family_names()`.
        checkpoint: a folder in the family's layout; None loads the family's small model.
        device: where to put all weights.
        dtype: what to compute in; None is float16 on a GPU and float32 on the CPU.
        quantization: bits of the language model's weights; None keeps them in `dtype`.
        role: modules that this role does not need are not loaded.

    Raises:
        UnknownFamily: there is no such family.
        WeightsError, TokenizerError: the checkpoint is incomplete, damaged or another model's, or the library that
            quantises is not installed.
    """
    family: Family = family_module(name).load(
        checkpoint=checkpoint,
        device=device,
        dtype=dtype or default_dtype(device),
        quantization=quantization,
        role=role,
    )
    return family


def default_dtype(device: "torch.device | str") -> "torch.dtype":
    """Return the default dtype of a device: float16 on a GPU, as published, and float32 on the CPU."""
    import torch

    return torch.float32 if torch.device(device).type == "cpu" else torch.float16


def family_module(name: str) -> ModuleType:
    """Import the `family` module of one family.

    Raises:
        UnknownFamily: there is no such family.
    """
    if name not in family_names():
        raise UnknownFamily(f"There is no family {name!r}. Known families: {', '.join(family_names())}.")
    return importlib.import_module(f"{_package(name)}.family")


def _package(name: str) -> str:
    """The package of the family `name`."""
    return f"{__name__}.{name.replace('-', '_')}"

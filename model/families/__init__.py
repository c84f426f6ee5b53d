"""The registry of families: each folder is a family under its own name.

A family's `family.py` has `load(*, checkpoint, device, dtype, quantization, role) -> Family`. For the commands beside
`serve` it may have `read_source` (convert), `verify_stages` (verify), and `SIZES` with `blueprint` (plan); see
`videochat`.
"""

import importlib
import pkgutil
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from model.role import Role

if TYPE_CHECKING:
    import torch

    from model.family import Family
    from model.quantization import Quantization


class UnknownFamily(ValueError):
    """No family has this name; the message lists those there are."""


def family_names() -> tuple[str, ...]:
    """The families that can be loaded, e.g. `videochat`; finding them imports none."""
    return tuple(sorted(module.name.replace("_", "-") for module in pkgutil.iter_modules(__path__)))


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
        checkpoint: a folder in the family's layout; None takes the family's `tiny` sizes and weights.
        device: where all weights go.
        dtype: what everything computes in; None is float16 on a GPU and float32 on the CPU.
        quantization: bits of the language model's weights; None leaves them in `dtype`.
        role: what it is for; what that does not need is not loaded.

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
    """What everything computes in where nobody says: 16 bits on a GPU, as published; float32 on the CPU."""
    import torch

    return torch.float32 if torch.device(device).type == "cpu" else torch.float16


def family_module(name: str) -> ModuleType:
    """The module of one family.

    Raises:
        UnknownFamily: there is no such family.
    """
    if name not in family_names():
        raise UnknownFamily(f"There is no family {name!r}; there are: {', '.join(family_names())}.")
    return importlib.import_module(f"{__name__}.{name.replace('-', '_')}.family")

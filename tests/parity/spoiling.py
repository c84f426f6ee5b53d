"""Puts faults into published files."""

from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

Change = Callable[[dict[str, Tensor]], None]


def changed(path: Path, change: Change) -> None:
    """Rewrite a file's tensors."""
    if path.suffix == ".safetensors":
        state = load_file(path)
        change(state)
        save_file(state, path)
    else:
        content = torch.load(path, weights_only=True)
        change(content.get("model", content))
        torch.save(content, path)


def drop(key: str) -> Change:
    """Remove the tensors whose names have a prefix."""

    def change(state: dict[str, Tensor]) -> None:
        for name in [name for name in state if name.startswith(key)]:
            del state[name]

    return change


def add(key: str) -> Change:
    """Add a tensor."""
    return lambda state: state.update({key: torch.zeros(1)})


def narrow(key: str, rows: int) -> Change:
    """Keep only the first rows of a tensor."""
    return lambda state: state.update({key: state[key][:rows].clone()})


def shrink(key: str) -> Change:
    """Make a tensor a thousand times smaller."""
    return lambda state: state.update({key: state[key] * 1e-3})

"""Published files with a fault put in."""

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
    """Without the tensors whose names begin so."""

    def change(state: dict[str, Tensor]) -> None:
        for name in [name for name in state if name.startswith(key)]:
            del state[name]

    return change


def add(key: str) -> Change:
    """With a tensor more."""
    return lambda state: state.update({key: torch.zeros(1)})


def narrow(key: str, rows: int) -> Change:
    """With the first rows of a tensor alone."""
    return lambda state: state.update({key: state[key][:rows].clone()})


def shrink(key: str) -> Change:
    """With a tensor made a thousand times smaller."""
    return lambda state: state.update({key: state[key] * 1e-3})

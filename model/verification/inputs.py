"""Reads the inputs of a reference, and checks that they are complete."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor

from model.checkpoints.json_object import read_object
from model.weights import WeightsError, read_safetensors

Value = TypeVar("Value")


def read_inputs(folder: Path, *names: str) -> Mapping[str, Tensor]:
    """Return the tensors of `inputs.safetensors`.

    Raises:
        WeightsError: the file is absent, or lacks one of `names`.
    """
    path = folder / "inputs.safetensors"
    return _complete(read_safetensors(path), names, path)


def read_dialogue(folder: Path, *names: str) -> Mapping[str, Any]:
    """Return the object in `dialogue.json`.

    Raises:
        WeightsError: the file is absent, or lacks one of `names`.
    """
    path = folder / "dialogue.json"
    return _complete(read_object(path), names, path)


def _complete(values: Mapping[str, Value], names: tuple[str, ...], path: Path) -> Mapping[str, Value]:
    if missing := [name for name in names if name not in values]:
        raise WeightsError(f"{path} lacks {missing[0]}.")
    return values

"""Reads tensors out of `.pth` and `.bin` files, mapped and not copied; nothing in such a file is ever run.

Such files are pickles, which can call any function. torch's own restricted reader takes tensors and plain
containers alone; a training script's settings become plain dictionaries.
"""

import pickle
import struct
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.serialization import safe_globals

from model.weights import WeightsError

_ZIP = b"PK\x03\x04"
"""How files of torch 1.6 and later begin; only these can be mapped."""


_DAMAGED = (
    *(pickle.UnpicklingError, EOFError, OSError, RuntimeError, struct.error),
    *(AssertionError, AttributeError, LookupError, TypeError, ValueError),
)
"""What torch's reader raises on a file that is not whole."""


_STAND_INS: list[Callable[..., Any] | tuple[Callable[..., Any], str]] = [
    (OrderedDict, "utils.easydict.EasyDict"),
    (OrderedDict, "easydict.EasyDict"),
]
"""What settings become that a training script left beside its weights. torch fills no dictionary of other classes."""


def read_torch_file(path: Path) -> dict[str, Tensor]:
    """The tensors of a file that is a state dict, or has one under `model`; on the CPU, wherever they were saved.

    Raises:
        WeightsError: the file is absent, damaged, cut short, or holds more than tensors and settings.
    """
    content = _unpickled(path)
    state = content.get("model", content) if isinstance(content, dict) else None
    if not isinstance(state, dict) or not state:
        raise WeightsError(f"{path.name} holds no state dict; it is not a file of weights.")
    strangers = [str(key) for key, value in state.items() if not isinstance(value, Tensor)]
    if strangers:
        raise WeightsError(f"{path.name} holds {strangers[0]}, which is no tensor; it is not a file of weights.")
    return {str(key): value for key, value in state.items()}


def _unpickled(path: Path) -> object:
    try:
        with safe_globals(_STAND_INS):
            content: object = torch.load(path, map_location="cpu", weights_only=True, mmap=_is_mappable(path))
    except FileNotFoundError as error:
        raise WeightsError(f"{path} is not there. Download it, or name the file you have.") from error
    except _DAMAGED as error:
        raise WeightsError(_refusal(path, error)) from error
    return content


def _is_mappable(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(len(_ZIP)) == _ZIP


def _refusal(path: Path, error: Exception) -> str:
    if isinstance(error, pickle.UnpicklingError) and "GLOBAL" in str(error):
        return (
            f"{path.name} holds Python objects besides tensors and settings. Loading them could run code, so they "
            "are refused; get the file from its authors, or save its tensors alone."
        )
    size = path.stat().st_size if path.is_file() else 0
    return f"{path.name} is damaged or was cut short (it has {size:,} bytes). Download it again."

"""Reads tensors from `.pth` and `.bin` files, mapped and not copied, without running any code in them.

Such files are pickles, which can call any function. torch's restricted reader accepts only tensors and plain
containers; the settings of a training script become plain dictionaries.
"""

import pickle
import struct
import zipfile
import zlib
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.serialization import safe_globals

from model.checkpoints.torchscript import is_torchscript
from model.weights import WeightsError

_ZIP = b"PK\x03\x04"
"""The first bytes of files of torch 1.6 and later; only these can be mapped."""


_DAMAGED = (
    *(zipfile.BadZipFile, zlib.error, pickle.UnpicklingError, EOFError, OSError, RuntimeError, struct.error),
    *(AssertionError, AttributeError, LookupError, TypeError, ValueError),
)
"""Errors of the readers of zip files and of torch on a damaged or truncated file."""


_STAND_INS: list[Callable[..., Any] | tuple[Callable[..., Any], str]] = [
    (OrderedDict, "utils.easydict.EasyDict"),
    (OrderedDict, "easydict.EasyDict"),
]
"""Classes of settings that training scripts save beside weights, read as dictionaries."""


def read_torch_file(path: Path, *, may_be_empty: bool = False) -> dict[str, Tensor]:
    """Return the tensors of a file that is a state dict, or has one under `model`; always on the CPU.

    Args:
        path: of the file.
        may_be_empty: whether a state dict without tensors is accepted.

    Raises:
        WeightsError: the file is absent, damaged or truncated, or holds more than tensors and settings.
    """
    if is_torchscript(path):
        raise WeightsError(
            f"{path.name} is a TorchScript archive and not a state dict; it is not the file that belongs here."
        )
    content = _unpickled(path)
    state = content.get("model", content) if isinstance(content, dict) else None
    if not isinstance(state, dict) or not (state or may_be_empty):
        raise WeightsError(f"{path.name} holds no state dict; it is not a file of weights.")
    others = [str(key) for key, value in state.items() if not isinstance(value, Tensor)]
    if others:
        raise WeightsError(f"{path.name} holds {others[0]}, which is not a tensor; it is not a file of weights.")
    return {str(key): value for key, value in state.items()}


def _unpickled(path: Path) -> object:
    try:
        with safe_globals(_STAND_INS):
            content: object = torch.load(path, map_location="cpu", weights_only=True, mmap=_is_mappable(path))
    except FileNotFoundError as error:
        raise WeightsError(f"{path} does not exist. Download it, or name the file you have.") from error
    except _DAMAGED as error:
        raise WeightsError(_refusal(path, error)) from error
    return content


def _is_mappable(path: Path) -> bool:
    """Return whether a file can be mapped.

    Raises:
        BadZipFile: it could be, but a record does not have its checksum; torch does not compare them.
    """
    with path.open("rb") as file:
        if file.read(len(_ZIP)) != _ZIP:
            return False
    with zipfile.ZipFile(path) as archive:
        if (damaged := archive.testzip()) is not None:
            raise zipfile.BadZipFile(f"{damaged} is damaged")
    return True


def _refusal(path: Path, error: Exception) -> str:
    if isinstance(error, pickle.UnpicklingError) and "GLOBAL" in str(error):
        return (
            f"{path.name} holds Python objects besides tensors and settings. Loading them could run code, so "
            "the file is refused; get it from its authors, or save only its tensors."
        )
    size = path.stat().st_size if path.is_file() else 0
    return f"{path.name} is damaged or truncated (it has {size:,} bytes). Download it again."

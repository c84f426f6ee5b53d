"""How much memory a checkpoint folder takes when it is loaded, from the headers of its files. No torch."""

import json
import math
import os
import re
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from model.weight_bits import Quantization

_NOT_WEIGHTS = {"inputs.safetensors", "expected.safetensors"}
_QUANTIZED = re.compile(r"model\.layers\.\d+\..*_proj\.weight$")
"""The linear layers of a language model."""
_QUANTIZED_BYTES: dict[Quantization, float] = {"int8": 1.0, "int4": 0.5 + 4 / 64}
"""Bytes a weight; int4 has a scale in float32 for each 64."""
_MAX_HEADER = 100 << 20
_MAX_CONFIG = 16 << 20
_MAX_DIMENSIONS = 64
_MAX_VALUES = 1 << 50
"""Values of one tensor, or of all keys and values of a sequence; no real model comes near it."""
_DAMAGE = (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError)
"""What reading a file raises that has not the form that it should have."""


class UnreadableCheckpoint(ValueError):
    """The folder holds no weights that can be read; the message is a sentence."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Footprint:
    """The memory of one copy of a model."""

    weight_bytes: int
    kv_bytes: int
    """Keys and values of one sequence of the maximum length; 0 if the folder does not tell the decoder's sizes."""


def checkpoint_footprint(
    folder: Path, *, value_bytes: int, kv_value_bytes: int, quantization: Quantization | None
) -> Footprint:
    """Estimate the memory of the model in a folder; reads only the headers of its files.

    Args:
        folder: of `config.json` and `*.safetensors`.
        value_bytes: bytes of one weight that is not quantised.
        kv_value_bytes: bytes of one key or value.
        quantization: of the language model's linear layers.

    Raises:
        UnreadableCheckpoint: there are no weights, or a file is damaged or no regular file.
    """
    weight_bytes = 0.0
    for path in _weight_files(folder):
        for name, shape in _tensors(path):
            is_quantized = quantization is not None and _QUANTIZED.search(name) is not None
            per_value = _QUANTIZED_BYTES[quantization] if quantization and is_quantized else value_bytes
            weight_bytes += math.prod(shape) * per_value
    return Footprint(weight_bytes=math.ceil(weight_bytes), kv_bytes=_kv_values(folder) * kv_value_bytes)


def _weight_files(folder: Path) -> list[Path]:
    try:
        is_folder = stat.S_ISDIR(folder.stat().st_mode)
        paths = [path for path in sorted(folder.glob("*.safetensors")) if path.name not in _NOT_WEIGHTS]
    except OSError as error:
        raise UnreadableCheckpoint(f"{folder} cannot be read ({error.strerror}).") from None
    except ValueError:
        raise UnreadableCheckpoint(f"{str(folder)!r} is not the name of a folder.") from None
    if not is_folder:
        raise UnreadableCheckpoint(f"{folder} is not a folder.")
    if not paths:
        raise UnreadableCheckpoint(f"{folder} holds no *.safetensors.")
    return paths


def _tensors(path: Path) -> list[tuple[str, list[int]]]:
    """The name and the shape of each tensor of a safetensors file."""
    try:
        with _open_regular(path) as file:
            length = int.from_bytes(file.read(8), "little")
            header: dict[str, Any] = json.loads(file.read(min(length, _MAX_HEADER)))
        return [(name, _checked_sizes(tensor["shape"])) for name, tensor in header.items() if name[:2] != "__"]
    except _DAMAGE:
        raise UnreadableCheckpoint(f"{path} is not a safetensors file, or is damaged.") from None


def _kv_values(folder: Path) -> int:
    """Keys and values of one sequence of the maximum length, in all layers."""
    try:
        with _open_regular(folder / "config.json") as file:
            decoder = json.loads(file.read(_MAX_CONFIG))["decoder"]
        return 2 * math.prod(_checked_sizes([decoder["depth"], decoder["width"], decoder["max_positions"]]))
    except _DAMAGE:
        return 0


def _open_regular(path: Path) -> BinaryIO:
    """Open a file for reading; opening does not wait for the writer of a named pipe.

    Raises:
        OSError: the file cannot be opened.
        ValueError: it is a pipe, a device or a folder.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise ValueError("not a regular file")
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def _checked_sizes(sizes: Sequence[object]) -> list[int]:
    """Return sizes that a file states.

    Raises:
        ValueError: one is no whole number or is negative, or the product is larger than that of any model.
    """
    numbers = [size for size in sizes if type(size) is int and 0 <= size <= _MAX_VALUES]
    if len(numbers) != len(sizes) or len(numbers) > _MAX_DIMENSIONS or math.prod(numbers) > _MAX_VALUES:
        raise ValueError("no sizes of a tensor")
    return numbers

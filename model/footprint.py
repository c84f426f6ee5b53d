"""How much memory a checkpoint folder takes when it is loaded, from the headers of its files. No torch."""

import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from model.weight_bits import Quantization

_NOT_WEIGHTS = {"inputs.safetensors", "expected.safetensors"}
_QUANTIZED = re.compile(r"model\.layers\.\d+\..*_proj\.weight$")
"""The linear layers of a language model."""
_QUANTIZED_BYTES: dict[Quantization, float] = {"int8": 1.0, "int4": 0.5 + 4 / 64}
"""Bytes a weight; int4 has a scale in float32 for each 64."""
_MAX_HEADER = 100 << 20


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
        UnreadableCheckpoint: there are no weights, or a file is damaged.
    """
    paths = [path for path in sorted(folder.glob("*.safetensors")) if path.name not in _NOT_WEIGHTS]
    if not paths:
        raise UnreadableCheckpoint(f"{folder} holds no *.safetensors.")
    weight_bytes = 0.0
    for path in paths:
        for name, shape in _tensors(path):
            is_quantized = quantization is not None and _QUANTIZED.search(name) is not None
            per_value = _QUANTIZED_BYTES[quantization] if quantization and is_quantized else value_bytes
            weight_bytes += math.prod(shape) * per_value
    return Footprint(weight_bytes=math.ceil(weight_bytes), kv_bytes=_kv_values(folder) * kv_value_bytes)


def _tensors(path: Path) -> Iterator[tuple[str, list[int]]]:
    """The name and the shape of each tensor of a safetensors file."""
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header: dict[str, Any] = json.loads(file.read(min(length, _MAX_HEADER)))
        yield from ((name, list(map(int, tensor["shape"]))) for name, tensor in header.items() if name[:2] != "__")
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        raise UnreadableCheckpoint(f"{path} is not a safetensors file, or is damaged.") from None


def _kv_values(folder: Path) -> int:
    """Keys and values of one sequence of the maximum length, in all layers."""
    try:
        decoder = json.loads((folder / "config.json").read_bytes())["decoder"]
        return int(2 * decoder["depth"] * decoder["width"] * decoder["max_positions"])
    except (OSError, ValueError, TypeError, KeyError):
        return 0

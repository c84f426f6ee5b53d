"""Loads weights strictly through a key map, computes the digest of a checkpoint, and makes seeded test weights.

Every parameter must be covered exactly once. A lenient loader would silently leave modules at their initial values,
with which VideoChat's global token, for example, does nothing.
"""

import hashlib
import json
import mmap
import re
import weakref
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

SHOWN_KEYS = 8
_DTYPES = {
    **{"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16},
    **{"I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8},
    **{"U8": torch.uint8, "BOOL": torch.bool, "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2},
}
"""safetensors' names of dtypes."""
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
"""The dtypes that weights may have in a file."""
_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
"""Integers by their bytes."""


class WeightsError(ValueError):
    """A checkpoint does not fit its network; the message names the keys."""


@dataclass(frozen=True, kw_only=True, slots=True)
class KeyMap:
    """Maps the names of a published checkpoint to the parameters of our network."""

    renames: tuple[tuple[str, str], ...] = ()
    """Regular expressions and their replacements, applied in order to every key."""
    ignored: tuple[str, ...] = ()
    """Published keys (regular expressions, whole key) that are not loaded, such as buffers."""
    squeezed: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    """Our parameters that may be published with an extra axis: the number of axes then, and which one is extra."""

    def target(self, key: str) -> str | None:
        """Return our name of the published `key`; None if it is ignored."""
        if any(re.fullmatch(pattern, key) for pattern in self.ignored):
            return None
        for pattern, replacement in self.renames:
            key = re.sub(pattern, replacement, key)
        return key

    def shaped(self, target: str, tensor: Tensor) -> Tensor:
        """Return the published `tensor` without the axis that our parameter lacks."""
        num_axes, extra = self.squeezed.get(target, (0, 0))
        return tensor.squeeze(extra) if tensor.ndim == num_axes else tensor


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """Return every tensor of a safetensors file, on the CPU, mapped and read on first use.

    The pages of a tensor are released with it, even while other tensors of the file are in use. So a model that is
    quantised or moved to a GPU tensor by tensor is never in memory twice.

    Raises:
        WeightsError: the file is absent or not a safetensors file.
    """
    try:
        with safe_open(path, framework="pt"):
            pass  # checks header and length
        with path.open("rb") as file:
            header_bytes = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(header_bytes))
            mapping = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        first = 8 + header_bytes
        return {name: _mapped(mapping, first, entry) for name, entry in header.items() if name != "__metadata__"}
    except (OSError, SafetensorError, KeyError) as error:
        size = f"it has {path.stat().st_size:,} bytes" if path.is_file() else "it does not exist"
        raise WeightsError(f"{path.name} is damaged or truncated ({size}). Get it again.") from error


def _mapped(mapping: mmap.mmap, first: int, entry: Mapping[str, Any]) -> Tensor:
    """Return one tensor of a mapped file; `first` is where the tensors' bytes begin, `entry` is from the header."""
    dtype, (begin, end) = _DTYPES[entry["dtype"]], entry["data_offsets"]
    if begin == end:
        return torch.empty(entry["shape"], dtype=dtype)
    region = memoryview(mapping)[first + begin : first + end]
    weakref.finalize(region, _release_pages, mapping, first + begin, first + end).atexit = False
    return torch.frombuffer(region, dtype=dtype).reshape(entry["shape"])


def _release_pages(mapping: mmap.mmap, begin: int, end: int) -> None:
    """Release the pages that lie entirely in [begin, end); they can be read from the file again."""
    begin, end = -(-begin // mmap.PAGESIZE) * mmap.PAGESIZE, end // mmap.PAGESIZE * mmap.PAGESIZE
    if begin < end and hasattr(mmap, "MADV_DONTNEED"):
        mapping.madvise(mmap.MADV_DONTNEED, begin, end - begin)


def load_strict(
    module: nn.Module,
    tensors: Mapping[str, Tensor],
    *,
    key_map: KeyMap,
    dtype: torch.dtype | None = None,
    wanted: Callable[[str], bool] | None = None,
) -> None:
    """Assign published tensors to the module's parameters; the module may be on the meta device.

    Args:
        module: the module to fill; all its parameters and persistent buffers must be covered.
        tensors: published key to tensor.
        key_map: maps the published keys to names in `module`.
        dtype: cast to it if the checkpoint differs; None keeps the checkpoint's.
        wanted: whether to load the parameter of this name; parameters that are not loaded must be covered too.

    Raises:
        WeightsError: a key is unknown, covered twice or missing, a shape differs, or a tensor is not in floating point
            or does not fit into the dtype; nothing was loaded.
    """
    covered = cover(module, tensors, key_map=key_map)
    values: dict[str, Tensor] = {}
    shared: dict[int, Tensor] = {}
    for target, (_, tensor) in covered.items():
        if wanted is None or wanted(target):
            if id(tensor) not in shared:
                shared[id(tensor)] = cast_to(dtype or tensor.dtype, tensor, name=target)
            values[target] = shared[id(tensor)]
    module.load_state_dict(values, assign=True, strict=wanted is None)


def cast_to(dtype: torch.dtype, tensor: Tensor, *, name: str) -> Tensor:
    """Return a tensor in a dtype.

    Raises:
        WeightsError: a value does not fit into it.
    """
    cast = tensor.to(dtype)
    if torch.finfo(dtype).max < torch.finfo(tensor.dtype).max and not cast.isfinite().all():
        kind = str(dtype).removeprefix("torch.")
        raise WeightsError(
            f"{name} has values that are not finite in {kind}. Take another dtype, or get the file again."
        )
    return cast


def cover(module: nn.Module, tensors: Mapping[str, Tensor], *, key_map: KeyMap) -> dict[str, tuple[str, Tensor]]:
    """Return the published key that covers each parameter of the module, and its tensor in the module's shape.

    A parameter of a shared module has several names. The keys of some of them may be absent; those that are present
    must have equal tensors, of which one is returned for all names.

    Args:
        module: on any device, including the meta device; it is not changed.
        tensors: published key to tensor.
        key_map: maps the published keys to names in `module`.

    Raises:
        WeightsError: a key is unknown, covered twice or missing, a shape or a tensor of a shared parameter differs, or
            a tensor has another dtype than those of `FLOATS`.
    """
    parameters = module.state_dict(keep_vars=True)
    wanted = {name: tensor.shape for name, tensor in parameters.items()}
    sources: dict[str, list[str]] = {}
    for key in tensors:
        if (target := key_map.target(key)) is not None:
            sources.setdefault(target, []).append(key)
    _refuse("unknown keys", (key for target, keys in sources.items() if target not in wanted for key in keys))
    _refuse("keys for one parameter", (key for keys in sources.values() if len(keys) > 1 for key in keys))
    covered = {target: (key, key_map.shaped(target, tensors[key])) for target, (key,) in sources.items()}
    shared = _names_of_shared(parameters)
    for names in shared:
        given = next((covered[name] for name in names if name in covered), None)
        covered |= {name: given for name in names if given is not None and name not in covered}
    _refuse("parameters that no key covers", (name for name in wanted if name not in covered))
    _refuse("tensors that are not in floating point", (key for key, tensor in covered.values() if not is_float(tensor)))
    _refuse(
        "shapes that differ",
        (
            f"{key} {list(tensor.shape)} for {list(wanted[target])}"
            for target, (key, tensor) in covered.items()
            if tensor.shape != wanted[target]
        ),
    )
    _refuse(
        "different tensors for one shared parameter",
        (
            covered[name][0]
            for names in shared
            for name in names
            if not same_values(covered[name][1], covered[names[0]][1])
        ),
    )
    return covered | {name: (covered[name][0], covered[names[0]][1]) for names in shared for name in names}


def is_float(tensor: Tensor) -> bool:
    """Return whether a tensor has a dtype of weights; 8 bits and complex numbers are none."""
    return tensor.dtype in FLOATS


def same_values(one: Tensor, other: Tensor) -> bool:
    """Return whether two tensors have the same dtype, shape and bits."""
    bits = _BITS[one.dtype.itemsize]  # compared as integers, four times as fast as numbers in half precision
    return one.dtype == other.dtype and torch.equal(one.view(bits), other.view(bits))


def _names_of_shared(parameters: Mapping[str, Tensor]) -> list[list[str]]:
    """Return the names of each parameter that has more than one."""
    names: dict[int, list[str]] = {}
    for name, parameter in parameters.items():
        names.setdefault(id(parameter), []).append(name)
    return [group for group in names.values() if len(group) > 1]


class CheckpointDigest:
    """SHA-256 of a checkpoint's sizes and tensors; add the tensors one by one in the order of their names."""

    def __init__(self, sizes: Mapping[str, Any]) -> None:
        self._digest = hashlib.sha256(json.dumps(sizes, sort_keys=True).encode())

    def add(self, name: str, tensor: Tensor) -> None:
        """Add the name, dtype, shape and bytes of one tensor."""
        tensor = tensor.detach().cpu().contiguous()
        self._digest.update(f"\n{json.dumps(name)} {tensor.dtype} {list(tensor.shape)}\n".encode())
        self._digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)

    def hexdigest(self) -> str:
        """Return the digest of everything added so far, hex."""
        return self._digest.hexdigest()


def checkpoint_digest(tensors: Mapping[str, Tensor], sizes: Mapping[str, Any]) -> str:
    """Return the SHA-256, hex, of the sizes and of every tensor (name, dtype, shape, bytes) in the order of names."""
    digest = CheckpointDigest(sizes)
    for name in sorted(tensors):
        digest.add(name, tensors[name])
    return digest.hexdigest()


def encoder_digest(parameters: Mapping[str, Tensor], sizes: Mapping[str, Any]) -> str:
    """Return the SHA-256, hex, of an encoder's parameters under our names, and of all sizes but the decoder's.

    Models that differ only in their language models have the same one, and share cached features.
    """
    return checkpoint_digest(parameters, {name: size for name, size in sizes.items() if name != "decoder"})


def seeded(module: nn.Module, *, seed: int) -> dict[str, Tensor]:
    """Draw random float32 values for every parameter of `module`: none zero, and the same on every machine.

    The distribution is uniform, because torch makes uniform numbers exactly from integers; normal numbers differ in
    the last bit between CPUs. Each parameter has its own generator, seeded by its name, so the order of parameters
    does not matter. Matrices preserve the variance of their inputs, norms are near 1, and other vectors are small.
    """
    return {name: _drawn(f"{seed}:{name}", parameter) for name, parameter in module.named_parameters()}


def _drawn(name: str, parameter: Tensor) -> Tensor:
    words = hashlib.sha256(name.encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(words[:8], "big") >> 1)
    values = torch.rand(parameter.shape, generator=generator) * 2 - 1  # [-1, 1) in steps of 2^-23
    values = values.masked_fill_(values == 0, 0.5) * 3**0.5  # variance 1
    if parameter.ndim > 1:
        spread: float = _fan_in(parameter) ** -0.5
        return values * spread
    return 1 + values * 0.1 if name.endswith("weight") else values * 0.05


def _fan_in(parameter: Tensor) -> int:
    return max(1, parameter[0].numel()) if parameter.shape[0] > 1 else parameter.shape[-1]


def _refuse(what: str, keys: Iterable[str]) -> None:
    found = sorted(keys)
    if found:
        more = f" and {len(found) - SHOWN_KEYS} more" if len(found) > SHOWN_KEYS else ""
        raise WeightsError(f"The checkpoint has {what}: {', '.join(found[:SHOWN_KEYS])}{more}.")

"""Reads the tensors of a TorchScript archive, such as OpenAI's `ViT-L-14.pt`, without running any code in it.

Such an archive is a zip file with the tensors' bytes, a pickle of the module tree, and the source of its methods, which
is not read. The pickle may name only module classes, which become plain attribute holders, and tensors. All sizes are
bounded by the size of the file.
"""

import io
import math
import pickle
import pickletools
import zipfile
import zlib
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import torch
from torch import Tensor

from model.weights import WeightsError

MAX_PICKLE_BYTES = 16 * 1024**2
MAX_ATTRIBUTES = 100_000
MAX_DEPTH = 64
"""Bounds of the module tree. A CLIP ViT-L/14 has 36 blocks with some 30 attributes each, 6 modules deep."""

_DTYPES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}
_TREE, _CONSTANTS, _BYTE_ORDER = "data.pkl", "constants.pkl", "byteorder"
"""The records beside those of the tensors. Early versions of torch write no `byteorder`; the constants of methods, by
which a TorchScript archive is recognised, are not read."""
_OPCODES = {
    *("PROTO", "STOP", "GLOBAL", "NEWOBJ", "REDUCE", "BUILD", "BINPERSID", "MARK"),
    *("BINPUT", "LONG_BINPUT", "BINGET", "LONG_BINGET"),
    *("EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "EMPTY_DICT", "SETITEM", "SETITEMS"),
    *("EMPTY_LIST", "APPEND", "APPENDS"),
    *("NONE", "NEWTRUE", "NEWFALSE", "BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE"),
}
"""The opcodes that TorchScript's pickler writes."""
_DAMAGED = (
    *(zipfile.BadZipFile, zlib.error, pickle.UnpicklingError, EOFError, OSError, RuntimeError, NotImplementedError),
    *(AttributeError, LookupError, TypeError, ValueError, OverflowError, MemoryError),
)
"""Errors of the readers of zip files and pickles on a damaged file."""


def read_torchscript(path: Path) -> dict[str, Tensor]:
    """Return the parameters and buffers of a TorchScript archive by their full names, on the CPU.

    Raises:
        WeightsError: the file is absent, damaged, truncated, not a TorchScript archive, or holds more than a tree of
            modules with tensors.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            return _read(path, archive)
    except WeightsError:
        raise
    except FileNotFoundError as error:
        raise WeightsError(f"{path} does not exist. Download it, or name the file you have.") from error
    except _DAMAGED as error:
        size = path.stat().st_size if path.is_file() else 0
        raise WeightsError(
            f"{path.name} is damaged or truncated (it has {size:,} bytes). Download it again."
        ) from error


def is_torchscript(path: Path) -> bool:
    """Return whether a file is a zip file with the records of a TorchScript archive."""
    try:
        with zipfile.ZipFile(path) as archive:
            return {_TREE, _CONSTANTS} <= {name.partition("/")[2] for name in archive.namelist()}
    except _DAMAGED:
        return False


@dataclass(frozen=True, slots=True)
class _Storage:
    """The storage of one or more tensors: its dtype, its record in the archive, and its number of values."""

    dtype: torch.dtype
    record: str
    num_values: int


@dataclass(frozen=True, slots=True)
class _View:
    """A tensor as the pickle describes it, by the arguments of torch's `_rebuild_tensor_v2`; nothing is checked yet."""

    storage: object
    offset: object
    shape: object
    strides: object
    requires_grad: object
    hooks: object


class _Module:
    """A stand-in for a module of any class: keeps its attributes and has no behaviour."""

    attributes: Mapping[object, object] = MappingProxyType({})

    def __setstate__(self, state: object) -> None:
        """Take the attributes from a pickle."""
        if not isinstance(state, dict):
            raise pickle.UnpicklingError("a module without named attributes")
        self.attributes = state


class _Unpickler(pickle.Unpickler):
    """Creates modules, tensor descriptions and plain containers; refuses every other class and every function.

    A pickle can set attributes of what it names, so it gets only classes that cannot be changed by that.
    """

    def find_class(self, module: str, name: str, /) -> object:
        """Return the stand-in for a class or function that the pickle names."""
        if module == "__torch__" or module.startswith("__torch__."):
            return _Module
        if module == "torch" and name in _DTYPES:
            return _DTYPES[name]
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _View
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        raise WeightsError(f"The archive names {module}.{name}")

    def persistent_load(self, pid: object, /) -> object:
        """Return the storage that a pickle refers to."""
        match pid:
            case ("storage", torch.dtype() as dtype, str() as record, str(), int() as num_values):
                return _Storage(dtype, record, num_values)
        raise pickle.UnpicklingError("an unknown kind of reference")


def _read(path: Path, archive: zipfile.ZipFile) -> dict[str, Tensor]:
    records = _records(path, archive)
    if not {_TREE, _CONSTANTS} <= records.keys():
        raise WeightsError(f"{path.name} is not a TorchScript archive.")
    if _BYTE_ORDER in records and archive.read(records[_BYTE_ORDER]) != b"little":
        raise WeightsError(f"{path.name} was written on a big-endian machine, which is not supported.")
    if records[_TREE].file_size > MAX_PICKLE_BYTES:
        raise _refused(path, f"a description of more than {MAX_PICKLE_BYTES:,} bytes")
    root = _unpickled(path, archive.read(records[_TREE]))
    if not isinstance(root, _Module):
        raise _refused(path, "something other than a module")
    storages: dict[_Storage, Tensor] = {}
    tensors: dict[str, Tensor] = {}
    for name, view in _views(path, root):
        tensors[name] = _tensor(view, storages, archive, records)
    return tensors


def _records(path: Path, archive: zipfile.ZipFile) -> Mapping[str, zipfile.ZipInfo]:
    """Return the records that hold the module tree and the tensors, by their paths below the archive's one folder.

    They must be uncompressed and fit into the file together, so that a small file cannot expand to a large one. Source
    and debug records, which may be compressed, are left out.
    """
    entries = [(entry.filename.partition("/")[2], entry) for entry in archive.infolist()]
    wanted = {_TREE, _CONSTANTS, _BYTE_ORDER}
    read = [(name, entry) for name, entry in entries if name in wanted or name.startswith("data/")]
    if any(entry.compress_type != zipfile.ZIP_STORED or entry.file_size != entry.compress_size for _, entry in read):
        raise _refused(path, "compressed tensors")
    if sum(entry.file_size for _, entry in read) > path.stat().st_size:
        raise _refused(path, "records that overlap")
    if len(dict(read)) != len(read):
        raise _refused(path, "two records of the same name")
    return dict(read)


def _unpickled(path: Path, data: bytes) -> object:
    # A place in the unpickler's memo costs memory up to its number, so that one opcode could take gigabytes.
    for opcode, argument, _ in pickletools.genops(data):
        is_far = opcode.name == "LONG_BINPUT" and isinstance(argument, int) and argument > len(data)
        if is_far or opcode.name not in _OPCODES:
            raise _refused(path, f"the opcode {opcode.name}")
    try:
        return _Unpickler(io.BytesIO(data)).load()
    except WeightsError as error:
        raise _refused(path, "Python objects besides modules and tensors") from error


def _views(path: Path, root: _Module) -> Iterator[tuple[str, _View]]:
    """Yield the full name and description of every tensor; a module may be an attribute of several others."""
    num_attributes = 0
    left = [("", 0, root)]
    while left:
        prefix, depth, module = left.pop()
        num_attributes += len(module.attributes)
        if depth > MAX_DEPTH or num_attributes > MAX_ATTRIBUTES:
            raise _refused(path, "too many modules")
        for name, value in module.attributes.items():
            match value:
                case _Module():
                    left.append((f"{prefix}{name}.", depth + 1, value))
                case _View():
                    yield f"{prefix}{name}", value
                case None | bool() | int() | float() | str():
                    pass
                case _:
                    raise _refused(path, f"an attribute {prefix}{name} that is no tensor")


def _tensor(
    view: _View, storages: dict[_Storage, Tensor], archive: zipfile.ZipFile, records: Mapping[str, zipfile.ZipInfo]
) -> Tensor:
    """Return the tensor that a description means.

    Raises:
        ValueError, LookupError, BadZipFile: the description is impossible, or its bytes are absent or damaged.
    """
    match view:
        case _View(_Storage() as storage, int() as offset, tuple() as shape, tuple() as strides):
            pass
        case _:
            raise ValueError("a tensor without storage")
    numbers = (offset, *shape, *strides)
    if len(shape) != len(strides) or not all(type(number) is int and number >= 0 for number in numbers):
        raise ValueError("an impossible shape")
    if math.prod(shape) > storage.num_values:
        raise ValueError("a tensor that is larger than its storage")
    if storage not in storages:
        content = archive.read(records[f"data/{storage.record}"])  # checks the CRC
        if len(content) != storage.num_values * storage.dtype.itemsize:
            raise ValueError("a storage of another size")
        storages[storage] = torch.frombuffer(bytearray(content), dtype=storage.dtype) if content else torch.empty(0)
    return storages[storage].as_strided(shape, strides, offset)


def _refused(path: Path, what: str) -> WeightsError:
    return WeightsError(
        f"{path.name} holds {what}. It is not an archive of weights as published, and is refused; "
        "get it from its authors."
    )

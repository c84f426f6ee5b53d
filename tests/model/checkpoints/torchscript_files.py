"""Writes TorchScript archives: whole ones with torch, and others from a description of the module tree by hand."""

import pickle
import struct
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

STORAGES = {torch.float32: "FloatStorage", torch.float16: "HalfStorage", torch.int64: "LongStorage"}


class Tree(nn.Module):
    """A module with given tensors, by their full names."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        super().__init__()
        inner: dict[str, dict[str, Tensor]] = {}
        for name, tensor in tensors.items():
            first, _, rest = name.partition(".")
            if rest:
                inner.setdefault(first, {})[rest] = tensor
            else:
                self.register_buffer(name, tensor)
        for name, below in inner.items():
            self.add_module(name, Tree(below))

    def forward(self, x: Tensor) -> Tensor:
        """Return the input."""
        return x


def write_torchscript(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write an archive with torch, as OpenAI wrote its own."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.save(torch.jit.trace(Tree(tensors), torch.ones(1)), path)  # type: ignore[no-untyped-call]


def write_records(path: Path, records: Mapping[str, bytes], *, compression: int = zipfile.ZIP_STORED) -> None:
    """Write an archive of given records; without `constants.pkl` in them, an empty one is added."""
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in {"constants.pkl": b"\x80\x02).", **records}.items():
            archive.writestr(f"model/{name}", content)


def text(value: str) -> bytes:
    """The opcode that pushes a text."""
    return pickle.BINUNICODE + struct.pack("<I", len(value)) + value.encode()


def number(value: int) -> bytes:
    """The opcode that pushes an integer."""
    return pickle.BININT + struct.pack("<i", value)


def tuple_of(*items: bytes) -> bytes:
    """The opcodes that push a tuple."""
    return pickle.MARK + b"".join(items) + pickle.TUPLE


def name(module: str, attribute: str) -> bytes:
    """The opcode that pushes a class or a function by its name."""
    return pickle.GLOBAL + f"{module}\n{attribute}\n".encode()


def tensor(
    shape: tuple[int, ...],
    strides: tuple[int, ...],
    *,
    record: str = "0",
    num_values: int = 6,
    offset: int = 0,
    storage: str = "FloatStorage",
) -> bytes:
    """The opcodes that push a tensor; by default its storage is the record `data/0` of six float32 values."""
    reference = tuple_of(text("storage"), name("torch", storage), text(record), text("cpu"), number(num_values))
    arguments = tuple_of(
        reference + pickle.BINPERSID,
        number(offset),
        tuple_of(*map(number, shape)),
        tuple_of(*map(number, strides)),
        pickle.NEWFALSE,
        name("collections", "OrderedDict") + pickle.EMPTY_TUPLE + pickle.REDUCE,
    )
    return name("torch._utils", "_rebuild_tensor_v2") + arguments + pickle.REDUCE


def module(**attributes: bytes) -> bytes:
    """The opcodes that push a module with attributes."""
    items = b"".join(text(key) + value for key, value in attributes.items())
    state = pickle.EMPTY_DICT + pickle.MARK + items + pickle.SETITEMS
    return name("__torch__", "Held") + pickle.EMPTY_TUPLE + pickle.NEWOBJ + state + pickle.BUILD


def tree(root: bytes) -> bytes:
    """A whole pickle."""
    return pickle.PROTO + b"\x02" + root + pickle.STOP

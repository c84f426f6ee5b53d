"""Reads and writes LLaMA's `tokenizer.model`, a sentencepiece model in protobuf, without either package.

Refuses what it would get wrong: unigram models, normalisers that change text, pieces matched before merging.
Field numbers are those of sentencepiece_model.proto.
"""

import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

from model.text.tokenizer import Piece, Tokenizer, TokenizerError, control_pieces

_MODEL_PIECE, _MODEL_TRAINER, _MODEL_NORMALIZER = 1, 2, 3
_PIECE_TEXT, _PIECE_SCORE, _PIECE_KIND = 1, 2, 3
_TRAINER_MODEL_TYPE, _TRAINER_SPACE_SUFFIX, _TRAINER_BYTE_FALLBACK = 3, 24, 35
_NORMALIZER_NAME = 1
_NORMALIZER_CHARSMAP, _NORMALIZER_DUMMY_PREFIX, _NORMALIZER_SQUEEZE, _NORMALIZER_ESCAPE = 2, 3, 4, 5
_BPE = 2
_KINDS: dict[int, Literal["normal", "unknown", "control", "byte"]] = {
    1: "normal",
    2: "unknown",
    3: "control",
    6: "byte",
}

Value = int | bytes


def read_sentencepiece(path: Path, *, added: Sequence[str] = ()) -> Tokenizer:
    """The tokenizer that a sentencepiece file describes; special tokens called `added` follow its pieces.

    Raises:
        TokenizerError: the file is unreadable, damaged, or no byte-pair model of LLaMA's kind.
    """
    try:
        return Tokenizer([*_pieces(path.read_bytes()), *control_pieces(added)])
    except OSError as error:
        raise TokenizerError(f"{path} cannot be read, where LLaMA's own tokenizer belongs.") from error
    except (IndexError, struct.error, UnicodeDecodeError, TypeError) as error:
        raise TokenizerError(f"{path.name} is no sentencepiece model.") from error


def write_sentencepiece(pieces: Sequence[Piece]) -> bytes:
    """The file of a byte-pair model as LLaMA's, which `read_sentencepiece` and sentencepiece itself read back."""
    kinds = {name: number for number, name in _KINDS.items()}
    messages = [
        _field(_PIECE_TEXT, piece.text.encode())
        + _written(_PIECE_SCORE << 3 | 5)
        + struct.pack("<f", piece.score)
        + _field(_PIECE_KIND, kinds[piece.kind])
        for piece in pieces
    ]
    trainer = _field(_TRAINER_MODEL_TYPE, _BPE) + _field(_TRAINER_BYTE_FALLBACK, 1)
    normalizer = _field(_NORMALIZER_NAME, b"identity") + _field(_NORMALIZER_SQUEEZE, 0)
    return (
        b"".join(_field(_MODEL_PIECE, message) for message in messages)
        + _field(_MODEL_TRAINER, trainer)
        + _field(_MODEL_NORMALIZER, normalizer)
    )


def _field(number: int, value: Value) -> bytes:
    if isinstance(value, int):
        return _written(number << 3) + _written(value)
    return _written(number << 3 | 2) + _written(len(value)) + value


def _written(value: int) -> bytes:
    """A varint."""
    low, rest = value & 0x7F, value >> 7
    return bytes([low | 0x80]) + _written(rest) if rest else bytes([low])


def _pieces(blob: bytes) -> Iterator[Piece]:
    specs: dict[int, dict[int, Value]] = {}
    for number, value in _fields(blob):
        if number == _MODEL_PIECE:
            yield _piece(dict(_fields(_message(value))))
        else:
            specs[number] = dict(_fields(_message(value))) if isinstance(value, bytes) else {}
    _check_kind(specs.get(_MODEL_TRAINER, {}), specs.get(_MODEL_NORMALIZER, {}))


def _piece(fields: dict[int, Value]) -> Piece:
    kind = fields.get(_PIECE_KIND, 1)
    if kind not in _KINDS:
        raise TokenizerError("Pieces that are user-defined or unused are not supported.")
    (score,) = struct.unpack("<f", _message(fields.get(_PIECE_SCORE, bytes(4))))
    return Piece(text=_message(fields[_PIECE_TEXT]).decode(), score=score, kind=_KINDS[int(kind)])


def _check_kind(trainer: dict[int, Value], normalizer: dict[int, Value]) -> None:
    if trainer.get(_TRAINER_MODEL_TYPE, 1) != _BPE:
        raise TokenizerError("Only byte-pair models are supported.")
    if not trainer.get(_TRAINER_BYTE_FALLBACK, 0) or trainer.get(_TRAINER_SPACE_SUFFIX, 0):
        raise TokenizerError("Only models with byte fallback and spaces in front are supported.")
    prefixed = normalizer.get(_NORMALIZER_DUMMY_PREFIX, 1) and normalizer.get(_NORMALIZER_ESCAPE, 1)
    if not prefixed or normalizer.get(_NORMALIZER_SQUEEZE, 1) or normalizer.get(_NORMALIZER_CHARSMAP, b""):
        raise TokenizerError("Only models that leave text as it is, after a dummy prefix, are supported.")


def _message(value: Value) -> bytes:
    if not isinstance(value, bytes):
        raise TypeError("a number stands where bytes belong")
    return value


def _fields(blob: bytes) -> Iterator[tuple[int, Value]]:
    """The fields of one protobuf message: number, and a varint's value or the bytes of anything longer."""
    at = 0
    while at < len(blob):
        tag, at = _varint(blob, at)
        match tag & 7:
            case 0:
                value, at = _varint(blob, at)
                yield tag >> 3, value
                continue
            case 1:
                size = 8
            case 2:
                size, at = _varint(blob, at)
            case 5:
                size = 4
            case _:
                raise TypeError("no protobuf wire type")
        if at + size > len(blob):
            raise IndexError("a field ends after its message")
        yield tag >> 3, blob[at : at + size]
        at += size


def _varint(blob: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = blob[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at

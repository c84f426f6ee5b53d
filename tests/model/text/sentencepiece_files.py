"""Writes sentencepiece model files in protobuf, for tests that read them."""

import struct
from collections.abc import Sequence

from model.text.tokenizer import BOS, EOS, SPACE, UNKNOWN, Piece, byte_piece

KINDS = {"normal": 1, "unknown": 2, "control": 3, "byte": 6}


def field(number: int, value: int | bytes) -> bytes:
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    return varint(number << 3 | 2) + varint(len(value)) + value


def varint(value: int) -> bytes:
    low, rest = value & 0x7F, value >> 7
    return bytes([low | 0x80]) + varint(rest) if rest else bytes([low])


def piece_field(piece: Piece, *, kind: int | None = None) -> bytes:
    score = varint(2 << 3 | 5) + struct.pack("<f", piece.score)
    return field(1, field(1, piece.text.encode()) + score + field(3, kind or KINDS[piece.kind]))


def llama_like(words: Sequence[str] = ()) -> list[Piece]:
    """Specials, bytes and printable ASCII as in LLaMA, and `words`, of which the first is merged first."""
    merged = [Piece(text=word, score=-float(rank)) for rank, word in enumerate(words)]
    return [
        Piece(text=UNKNOWN, kind="unknown"),
        Piece(text=BOS, kind="control"),
        Piece(text=EOS, kind="control"),
        *(Piece(text=byte_piece(value), kind="byte") for value in range(256)),
        *merged,
        *(Piece(text=char, score=-1000.0) for char in (SPACE, *map(chr, range(0x21, 0x7F)))),
    ]


def model_file(pieces: Sequence[Piece], *, trainer: bytes = b"", normalizer: bytes = b"") -> bytes:
    """A byte-pair model as LLaMA's, but for what `trainer` and `normalizer` add (the last value of a field counts)."""
    return (
        b"".join(map(piece_field, pieces))
        + field(2, field(3, 2) + field(35, 1) + trainer)
        + field(3, field(1, b"identity") + field(4, 0) + normalizer)
    )

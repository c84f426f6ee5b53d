"""Converts text to token ids and back as LLaMA's byte-pair tokenizers do: a dummy prefix, and a fallback to bytes.

Text never becomes a special token: `</s>` in a text is tokenized as four characters. Imports no torch.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from tokenizers import Tokenizer as Core
from tokenizers import models, normalizers

SPACE = "▁"
"""Stands for a space inside a piece (U+2581)."""
UNKNOWN, BOS, EOS = "<unk>", "<s>", "</s>"

PieceKind = Literal["normal", "unknown", "control", "byte"]


class TokenizerError(ValueError):
    """A tokenizer file is damaged or of an unsupported kind, or a vocabulary lacks a token."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Piece:
    """One entry of a vocabulary. Its index in the list is its id; merges with a higher score come first."""

    text: str
    score: float = 0.0
    kind: PieceKind = "normal"


class Tokenizer:
    """A byte-pair tokenizer over `pieces`.

    Raises:
        TokenizerError: two pieces are the same, a special or byte piece is missing, or a byte piece has a wrong name.
    """

    def __init__(self, pieces: Sequence[Piece]) -> None:
        ids = {piece.text: token_id for token_id, piece in enumerate(pieces)}
        if len(ids) != len(pieces):
            raise TokenizerError("Two pieces of the vocabulary are the same.")
        if missing := [text for text in (UNKNOWN, BOS, EOS, *BYTE_PIECES) if text not in ids]:
            raise TokenizerError(f"The vocabulary lacks {missing[0]}.")
        self.bos_id = ids[BOS]
        self.eos_id = ids[EOS]
        self.vocab_size = len(pieces)
        self._specials = {piece.text: token_id for token_id, piece in enumerate(pieces) if piece.kind == "control"}
        self._bytes = tuple(_piece_bytes(piece) for piece in pieces)
        self._core = Core(models.BPE(ids, list(_merges(pieces)), unk_token=UNKNOWN, byte_fallback=True, fuse_unk=True))
        self._core.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE), normalizers.Replace(" ", SPACE)])

    def encode(self, text: str, *, bos: bool = False) -> list[int]:
        """Return the ids of `text`, after the dummy prefix; with `bos`, the begin-of-sequence id comes first.

        Lone surrogates, which UTF-8 cannot encode, become question marks.
        """
        clean = text.encode("utf-8", "replace").decode()
        ids = self._core.encode(clean, add_special_tokens=False).ids
        return [self.bos_id, *ids] if bos else ids

    def special_id(self, name: str) -> int:
        """Return the id of a special token, e.g. `</s>`.

        Raises:
            TokenizerError: there is no special token of this name.
        """
        if name not in self._specials:
            raise TokenizerError(f"The vocabulary lacks {name}.")
        return self._specials[name]

    def token_bytes(self, token_id: int) -> bytes:
        """Return the UTF-8 bytes that a token adds; none for a special token or a row beyond the vocabulary.

        A character may span several tokens. The bytes of a text begin with the space of the dummy prefix.
        """
        assert token_id >= 0, token_id
        return self._bytes[token_id] if token_id < self.vocab_size else b""

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of `ids` without the dummy prefix; incomplete characters become U+FFFD."""
        return b"".join(map(self.token_bytes, ids)).removeprefix(b" ").decode("utf-8", "replace")


def byte_piece(value: int) -> str:
    """Return the name of the piece for one byte, e.g. `<0x0A>`."""
    return f"<0x{value:02X}>"


BYTE_PIECES: Mapping[str, int] = {byte_piece(value): value for value in range(256)}
"""Name of a byte's piece to the byte."""


def control_pieces(names: Sequence[str]) -> list[Piece]:
    """Return pieces for special tokens, in the order of their ids."""
    return [Piece(text=name, kind="control") for name in names]


FIRST_PIECES = (
    Piece(text=UNKNOWN, kind="unknown"),
    *control_pieces((BOS, EOS)),
    *(Piece(text=name, kind="byte") for name in BYTE_PIECES),
)
"""The special and byte pieces with which LLaMA's vocabularies begin: ids 0 to 258."""
PRINTABLE = (SPACE, *map(chr, range(0x21, 0x7F)))
"""Pieces of printable ASCII."""


def plain_tokenizer(*, added: Sequence[str] = ()) -> Tokenizer:
    """Return an untrained tokenizer: specials, bytes and printable ASCII, then special tokens called `added`."""
    return Tokenizer([*FIRST_PIECES, *(Piece(text=text) for text in PRINTABLE), *control_pieces(added)])


class ByteTokenizer(Tokenizer):
    """One token for each byte of UTF-8, without a dummy prefix; reference tensors were made with it.

    Ids 3 to 258 are the bytes; the special tokens called `added` follow.
    """

    def __init__(self, *, added: Sequence[str] = ()) -> None:
        super().__init__([*FIRST_PIECES, *control_pieces(added)])

    def encode(self, text: str, *, bos: bool = False) -> list[int]:
        """Return the ids of the bytes of `text`; with `bos`, the begin-of-sequence id comes first."""
        ids = [len(FIRST_PIECES) - 256 + byte for byte in text.encode("utf-8", "replace")]
        return [self.bos_id, *ids] if bos else ids

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of `ids`; incomplete characters become U+FFFD."""
        return b"".join(map(self.token_bytes, ids)).decode("utf-8", "replace")


def _piece_bytes(piece: Piece) -> bytes:
    match piece.kind:
        case "normal":
            return piece.text.replace(SPACE, " ").encode()
        case "byte":
            if piece.text not in BYTE_PIECES:
                raise TokenizerError(f"{piece.text!r} is not the name of a byte's piece.")
            return bytes([BYTE_PIECES[piece.text]])
        case _:
            return b""


def _merges(pieces: Sequence[Piece]) -> Iterator[tuple[str, str]]:
    """Yield every way to make a normal piece out of two normal pieces, the best-scored piece first."""
    normal: Mapping[str, Piece] = {piece.text: piece for piece in pieces if piece.kind == "normal"}
    for text in sorted(normal, key=lambda text: -normal[text].score):
        for cut in range(1, len(text)):
            if text[:cut] in normal and text[cut:] in normal:
                yield text[:cut], text[cut:]

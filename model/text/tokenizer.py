"""Text to token ids and back, as LLaMA's byte-pair tokenizers do it: a dummy prefix, bytes to fall back on.

Typed text never becomes a special token: `</s>` in a text is four characters. No torch here.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from tokenizers import Tokenizer as Core
from tokenizers import models, normalizers

SPACE = "▁"
"""What a space is called inside a piece (U+2581)."""
UNKNOWN, BOS, EOS = "<unk>", "<s>", "</s>"


class TokenizerError(ValueError):
    """A tokenizer file is damaged, or of a kind that this reader would get wrong."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Piece:
    """One entry of a vocabulary; its place in the list is its id. Of two merges the higher score wins."""

    text: str
    score: float = 0.0
    kind: Literal["normal", "unknown", "control", "byte"] = "normal"


class Tokenizer:
    """A byte-pair tokenizer over `pieces`.

    Raises:
        TokenizerError: there are twins among the pieces, or a special or byte piece is missing.
    """

    def __init__(self, pieces: Sequence[Piece]) -> None:
        ids = {piece.text: number for number, piece in enumerate(pieces)}
        if len(ids) != len(pieces):
            raise TokenizerError("Two pieces of the vocabulary are the same.")
        if missing := [text for text in (UNKNOWN, BOS, EOS, *map(byte_piece, range(256))) if text not in ids]:
            raise TokenizerError(f"The vocabulary lacks {missing[0]}.")
        self.bos_id = ids[BOS]
        self.eos_id = ids[EOS]
        self.vocab_size = len(pieces)
        self._specials = {piece.text: number for number, piece in enumerate(pieces) if piece.kind == "control"}
        self._bytes = tuple(_piece_bytes(piece) for piece in pieces)
        self._core = Core(models.BPE(ids, list(_merges(pieces)), unk_token=UNKNOWN, byte_fallback=True, fuse_unk=True))
        self._core.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE), normalizers.Replace(" ", SPACE)])

    def encode(self, text: str, *, bos: bool = False) -> list[int]:
        """The ids of `text`, after the dummy prefix; with `bos`, the begin-of-sequence id comes first.

        Lone surrogates, which no UTF-8 has, become question marks.
        """
        clean = text.encode("utf-8", "replace").decode()
        ids = self._core.encode(clean, add_special_tokens=False).ids
        return [self.bos_id, *ids] if bos else ids

    def special_id(self, name: str) -> int:
        """The id of a token that no text becomes, e.g. `</s>`.

        Raises:
            TokenizerError: there is none of this name.
        """
        if name not in self._specials:
            raise TokenizerError(f"The vocabulary lacks {name}.")
        return self._specials[name]

    def token_bytes(self, token_id: int) -> bytes:
        """What a token adds to the text, in UTF-8; nothing for a special one or a row beyond the vocabulary.

        A character may be spread over several tokens. The bytes of a text begin with the dummy prefix space.
        """
        assert token_id >= 0, token_id
        return self._bytes[token_id] if token_id < self.vocab_size else b""

    def decode(self, ids: Sequence[int]) -> str:
        """The text of `ids` without the dummy prefix; broken characters become U+FFFD."""
        return b"".join(map(self.token_bytes, ids)).removeprefix(b" ").decode("utf-8", "replace")


def byte_piece(value: int) -> str:
    """What the piece of one byte is called, e.g. `<0x0A>`."""
    return f"<0x{value:02X}>"


def control_pieces(names: Sequence[str]) -> list[Piece]:
    """Special tokens, in the order of their ids."""
    return [Piece(text=name, kind="control") for name in names]


_FIRST_PIECES = (
    Piece(text=UNKNOWN, kind="unknown"),
    *control_pieces((BOS, EOS)),
    *(Piece(text=byte_piece(value), kind="byte") for value in range(256)),
)


def plain_tokenizer(*, added: Sequence[str] = ()) -> Tokenizer:
    """The vocabulary of a model that has learned none: specials, bytes, the space and printable ASCII.

    `added` are the names of special tokens that follow.
    """
    printable = [Piece(text=SPACE), *(Piece(text=chr(code)) for code in range(0x21, 0x7F))]
    return Tokenizer([*_FIRST_PIECES, *printable, *control_pieces(added)])


class ByteTokenizer(Tokenizer):
    """One token for each byte of UTF-8, without a dummy prefix: what reference tensors were made with.

    Ids 3 to 258 are the bytes; the special tokens called `added` follow.
    """

    def __init__(self, *, added: Sequence[str] = ()) -> None:
        super().__init__([*_FIRST_PIECES, *control_pieces(added)])

    def encode(self, text: str, *, bos: bool = False) -> list[int]:
        """The ids of the bytes of `text`; with `bos`, the begin-of-sequence id comes first."""
        ids = [len(_FIRST_PIECES) - 256 + byte for byte in text.encode("utf-8", "replace")]
        return [self.bos_id, *ids] if bos else ids

    def decode(self, ids: Sequence[int]) -> str:
        """The text of `ids`; broken characters become U+FFFD."""
        return b"".join(map(self.token_bytes, ids)).decode("utf-8", "replace")


def _piece_bytes(piece: Piece) -> bytes:
    match piece.kind:
        case "normal":
            return piece.text.replace(SPACE, " ").encode()
        case "byte":
            return bytes([int(piece.text[1:-1], 16)])
        case _:
            return b""


def _merges(pieces: Sequence[Piece]) -> Iterator[tuple[str, str]]:
    """Every way to make a piece out of two, best piece first; never a special or a byte piece."""
    normal: Mapping[str, Piece] = {piece.text: piece for piece in pieces if piece.kind == "normal"}
    for text in sorted(normal, key=lambda text: -normal[text].score):
        for cut in range(1, len(text)):
            if text[:cut] in normal and text[cut:] in normal:
                yield text[:cut], text[cut:]

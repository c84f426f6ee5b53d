"""Makes sentencepiece model files for tests that read them."""

from collections.abc import Sequence
from typing import Any

from sentencepiece import sentencepiece_model_pb2 as protobuf

from model.text.tokenizer import FIRST_PIECES, PRINTABLE, Piece
from training.vocabulary import tokenizer_file

model_file = tokenizer_file


def llama_like(words: Sequence[str] = ()) -> list[Piece]:
    """Specials, bytes and printable ASCII as in LLaMA, and `words`; earlier words are merged first."""
    merged = [Piece(text=word, score=-float(rank)) for rank, word in enumerate(words)]
    return [*FIRST_PIECES, *merged, *(Piece(text=char, score=-1000.0) for char in PRINTABLE)]


def model_message(pieces: Sequence[Piece]) -> Any:
    """A byte-pair model like LLaMA's, as a protobuf message that a test can change."""
    return protobuf.ModelProto.FromString(tokenizer_file(pieces))

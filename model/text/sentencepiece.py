"""Reads LLaMA's `tokenizer.model`, a byte-pair model in sentencepiece's protobuf format.

Parses the file with the message classes of the `sentencepiece` package, and never loads it into sentencepiece's own
C++ processor. Refuses models that the tokenizer here would read differently from sentencepiece: unigram models,
normalisers that change text, and pieces that are matched before merging.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from google.protobuf.message import DecodeError
from sentencepiece import sentencepiece_model_pb2 as protobuf

from model.text.tokenizer import Piece, PieceKind, Tokenizer, TokenizerError, control_pieces

KINDS: dict[int, PieceKind] = {1: "normal", 2: "unknown", 3: "control", 6: "byte"}
"""Values of `ModelProto.SentencePiece.Type`; user-defined (4) and unused (5) pieces are not supported."""


def read_sentencepiece(path: Path, *, added: Sequence[str] = ()) -> Tokenizer:
    """Return the tokenizer that a file describes; special tokens called `added` follow its pieces.

    Raises:
        TokenizerError: the file is unreadable, damaged, or not a byte-pair model of LLaMA's kind.
    """
    model: Any = protobuf.ModelProto()
    try:
        model.ParseFromString(path.read_bytes())
    except OSError as error:
        raise TokenizerError(f"{path} cannot be read. It must be LLaMA's own tokenizer.") from error
    except DecodeError as error:
        raise TokenizerError(f"{path} is not a sentencepiece model.") from error
    try:
        pieces = list(_pieces(model))
        _check_algorithm(model.trainer_spec, model.normalizer_spec)
        return Tokenizer([*pieces, *control_pieces(added)])
    except TokenizerError as error:
        raise TokenizerError(f"{path} cannot be used: {error}") from error


def _pieces(model: Any) -> Iterator[Piece]:
    for piece in model.pieces:
        if piece.type not in KINDS:
            raise TokenizerError("Pieces that are user-defined or unused are not supported.")
        if not isinstance(piece.piece, str):  # protobuf returns bytes that are not UTF-8 as they are
            raise TokenizerError("A piece of the vocabulary is not valid UTF-8.")
        yield Piece(text=piece.piece, score=piece.score, kind=KINDS[piece.type])


def _check_algorithm(trainer: Any, normalizer: Any) -> None:
    if trainer.model_type != protobuf.TrainerSpec.BPE:
        raise TokenizerError("Only byte-pair models are supported.")
    if not trainer.byte_fallback or trainer.treat_whitespace_as_suffix:
        raise TokenizerError("Only models with byte fallback and spaces in front are supported.")
    is_prefixed = normalizer.add_dummy_prefix and normalizer.escape_whitespaces
    if not is_prefixed or normalizer.remove_extra_whitespaces or normalizer.precompiled_charsmap:
        raise TokenizerError("Only models that leave text as it is, after a dummy prefix, are supported.")

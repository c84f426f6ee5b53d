"""Reading LLaMA's tokenizer files."""

from pathlib import Path

import pytest

from model.text.sentencepiece import read_sentencepiece
from model.text.tokenizer import Piece, Tokenizer, TokenizerError
from tests.model.text.sentencepiece_files import field, llama_like, model_file, piece_field

PIECES = llama_like(["th", "the"])


def read(tmp_path: Path, blob: bytes) -> Tokenizer:
    path = tmp_path / "tokenizer.model"
    path.write_bytes(blob)
    return read_sentencepiece(path)


def test_ids_are_places_in_the_file_and_scores_decide_what_is_merged_first(tmp_path: Path) -> None:
    for words, cut in ((["ab", "bc"], ["▁", "ab", "c"]), (["bc", "ab"], ["▁", "a", "bc"])):
        pieces = llama_like(words)
        tokenizer = read(tmp_path, model_file(pieces))
        assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.vocab_size) == (1, 2, len(pieces))
        begin, *ids = tokenizer.encode("abc", bos=True)
        assert (begin, [pieces[token_id].text for token_id in ids]) == (1, cut)


def test_what_sentencepiece_would_read_otherwise_is_refused(tmp_path: Path) -> None:
    for said, blob in {
        "byte-pair": model_file(PIECES, trainer=field(3, 1)),
        "byte fallback": model_file(PIECES, trainer=field(35, 0)),
        "spaces in front": model_file(PIECES, trainer=field(24, 1)),
        "as it is": model_file(PIECES, normalizer=field(2, b"\x01\x02")),
        "after a dummy prefix": model_file(PIECES, normalizer=field(3, 0)),
        "user-defined": model_file(PIECES) + piece_field(Piece(text="<pad>"), kind=4),
        "lacks <0x00>": model_file([piece for piece in PIECES if piece.kind != "byte"]),
        "are the same": model_file([*PIECES, PIECES[-1]]),
    }.items():
        with pytest.raises(TokenizerError, match=said):
            read(tmp_path, blob)


def test_a_model_that_squeezes_spaces_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match="as it is"):
        read(tmp_path, model_file(PIECES, normalizer=field(4, 1)))


def test_a_damaged_file_is_refused_wherever_it_was_cut(tmp_path: Path) -> None:
    blob = model_file(PIECES)
    for length in (0, 1, 7, len(blob) // 2, len(blob) - 1):
        with pytest.raises(TokenizerError):
            read(tmp_path, blob[:length])
    with pytest.raises(TokenizerError, match="no sentencepiece model"):
        read(tmp_path, b"\xff" * 64)
    with pytest.raises(TokenizerError, match="no sentencepiece model"):
        read(tmp_path, b'{"model": "json"}')


def test_an_absent_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match=r"absent\.model cannot be read"):
        read_sentencepiece(tmp_path / "absent.model")


def test_special_tokens_can_be_added_behind_those_of_the_file(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(model_file(PIECES))
    tokenizer = read_sentencepiece(tmp_path / "tokenizer.model", added=("<start>", "<end>"))
    assert [tokenizer.special_id(name) for name in ("<start>", "<end>")] == [len(PIECES), len(PIECES) + 1]
    with pytest.raises(TokenizerError, match="the same"):
        read_sentencepiece(tmp_path / "tokenizer.model", added=("the",))

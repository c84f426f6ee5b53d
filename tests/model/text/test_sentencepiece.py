"""Reading LLaMA's tokenizer files."""

from pathlib import Path
from random import Random

import pytest

from model.text.sentencepiece import read_sentencepiece
from model.text.tokenizer import Tokenizer, TokenizerError
from tests.model.text.sentencepiece_files import llama_like, model_file, model_message

PIECES = llama_like(["th", "the"])


def read(tmp_path: Path, blob: bytes) -> Tokenizer:
    path = tmp_path / "tokenizer.model"
    path.write_bytes(blob)
    return read_sentencepiece(path)


def test_ids_are_positions_in_the_file_and_scores_decide_what_is_merged_first(tmp_path: Path) -> None:
    for words, cut in ((["ab", "bc"], ["▁", "ab", "c"]), (["bc", "ab"], ["▁", "a", "bc"])):
        pieces = llama_like(words)
        tokenizer = read(tmp_path, model_file(pieces))
        assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.vocab_size) == (1, 2, len(pieces))
        begin, *ids = tokenizer.encode("abc", bos=True)
        assert (begin, [pieces[token_id].text for token_id in ids]) == (1, cut)


@pytest.mark.parametrize(
    ("spec", "field", "value", "message"),
    [
        ("trainer_spec", "model_type", 1, "byte-pair"),
        ("trainer_spec", "byte_fallback", False, "byte fallback"),
        ("trainer_spec", "treat_whitespace_as_suffix", True, "spaces in front"),
        ("normalizer_spec", "precompiled_charsmap", b"\x01\x02", "as it is"),
        ("normalizer_spec", "remove_extra_whitespaces", True, "as it is"),
        ("normalizer_spec", "add_dummy_prefix", False, "after a dummy prefix"),
    ],
)
def test_a_model_that_sentencepiece_would_read_differently_is_refused(
    tmp_path: Path, spec: str, field: str, value: object, message: str
) -> None:
    model = model_message(PIECES)
    setattr(getattr(model, spec), field, value)
    with pytest.raises(TokenizerError, match=message):
        read(tmp_path, model.SerializeToString())


def test_a_vocabulary_with_unsupported_missing_or_repeated_pieces_is_refused(tmp_path: Path) -> None:
    user_defined = model_message(PIECES)
    user_defined.pieces.add(piece="<pad>", type=4)
    misnamed = model_message(PIECES)
    misnamed.pieces.add(piece="<0xZZ>", type=6)
    for message, blob in {
        "user-defined": user_defined.SerializeToString(),
        "not the name of a byte's piece": misnamed.SerializeToString(),
        "not valid UTF-8": model_file(PIECES) + b"\x0a\x03\x0a\x01\xff",
        "lacks <0x00>": model_file([piece for piece in PIECES if piece.kind != "byte"]),
        "are the same": model_file([*PIECES, PIECES[-1]]),
    }.items():
        with pytest.raises(TokenizerError, match=message):
            read(tmp_path, blob)


def test_a_truncated_file_is_refused(tmp_path: Path) -> None:
    blob = model_file(PIECES)
    for length in (0, 1, 7, len(blob) // 2, len(blob) - 1):
        with pytest.raises(TokenizerError):
            read(tmp_path, blob[:length])


@pytest.mark.parametrize(
    "blob",
    [
        b"\xff" * 64,
        b'{"model": "json"}',
        bytes(10_000_000),
        b"\x0b" * 1_000_000,  # groups within groups
        b"\x0a\xff\xff\xff\xff\x07",  # a length beyond the end
    ],
    ids=["ones", "json", "zeros", "nested", "too long"],
)
def test_a_file_of_another_format_is_refused(tmp_path: Path, blob: bytes) -> None:
    with pytest.raises(TokenizerError, match="not a sentencepiece model"):
        read(tmp_path, blob)


def test_random_damage_gives_a_tokenizer_or_a_tokenizer_error(tmp_path: Path) -> None:
    random = Random(1)
    blob = model_file(PIECES)
    for _ in range(300):
        damaged = bytearray(blob)
        for _ in range(random.randint(1, 4)):
            damaged[random.randrange(len(damaged))] = random.randrange(256)
        try:
            tokenizer = read(tmp_path, bytes(damaged))
        except TokenizerError:
            continue
        tokenizer.decode(tokenizer.encode("the end"))


def test_an_absent_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match=r"absent\.model cannot be read"):
        read_sentencepiece(tmp_path / "absent.model")


def test_an_error_names_the_file(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.model"
    for content in (b"", b"damaged", model_file(PIECES)[:-9], model_file([*PIECES, *PIECES])):
        path.write_bytes(content)
        with pytest.raises(TokenizerError) as refused:
            read_sentencepiece(path)
        assert str(path) in str(refused.value)


def test_added_special_tokens_follow_the_pieces_of_the_file(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(model_file(PIECES))
    tokenizer = read_sentencepiece(tmp_path / "tokenizer.model", added=("<start>", "<end>"))
    assert [tokenizer.special_id(name) for name in ("<start>", "<end>")] == [len(PIECES), len(PIECES) + 1]
    with pytest.raises(TokenizerError, match="the same"):
        read_sentencepiece(tmp_path / "tokenizer.model", added=("the",))

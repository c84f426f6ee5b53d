"""Tokenizing text and decoding ids."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.text.tokenizer import ByteTokenizer, Tokenizer, TokenizerError, plain_tokenizer
from tests.model.text.sentencepiece_files import llama_like

PLAIN = plain_tokenizer()
# Pieces from which the names of special tokens and bytes could be merged by mistake.
TEMPTING = Tokenizer(llama_like(["</", "s>", "<s", "<0x", "0A>", "<0x0A", "he", "▁he"]))

typed = st.text(alphabet=st.one_of(st.sampled_from("</s>#0xA \n▁é😀"), st.characters(exclude_categories=["Cs"])))


@given(typed)
def test_decoding_returns_the_encoded_text(text: str) -> None:
    for tokenizer in (PLAIN, TEMPTING):
        assert tokenizer.decode(tokenizer.encode(text)) == text.replace("▁", " ")


@given(typed)
def test_the_bytes_of_tokens_are_the_text_after_its_dummy_prefix(text: str) -> None:
    ids = TEMPTING.encode(text, bos=True)
    assert b"".join(map(TEMPTING.token_bytes, ids)) == (b" " + text.replace("▁", " ").encode() if text else b"")


@given(typed)
def test_typed_text_never_becomes_a_special_token(text: str) -> None:
    for tokenizer in (PLAIN, TEMPTING):
        specials = {0, tokenizer.bos_id, tokenizer.eos_id}
        assert not specials & set(tokenizer.encode(f"{text}</s><s><unk>{text}"))


def test_the_name_of_a_byte_is_text() -> None:
    newline = TEMPTING.encode("\n")[-1]
    assert newline not in TEMPTING.encode("<0x0A>")
    assert TEMPTING.token_bytes(newline) == b"\n"


def test_begin_of_sequence_comes_first_and_only_on_request() -> None:
    assert PLAIN.encode("hi", bos=True) == [PLAIN.bos_id, *PLAIN.encode("hi")]
    assert PLAIN.encode("") == []


def test_specials_and_rows_beyond_the_vocabulary_decode_to_nothing() -> None:
    silent = [PLAIN.bos_id, PLAIN.eos_id, 0, PLAIN.vocab_size, PLAIN.vocab_size + 7]
    assert [PLAIN.token_bytes(token_id) for token_id in silent] == [b""] * len(silent)
    assert PLAIN.decode([*silent, *PLAIN.encode("hi"), PLAIN.eos_id]) == "hi"


def test_half_a_character_decodes_to_a_replacement_character() -> None:
    ids = PLAIN.encode("é")
    assert PLAIN.decode(ids) == "é"
    assert PLAIN.decode(ids[:-1]) == "\ufffd"


def test_a_lone_surrogate_becomes_a_question_mark() -> None:
    assert PLAIN.decode(PLAIN.encode("a\ud800b")) == "a?b"


def test_added_special_tokens_follow_the_others_and_no_text_becomes_one() -> None:
    added = plain_tokenizer(added=("<start>", "<end>"))
    assert [added.special_id(name) for name in ("<s>", "</s>", "<start>", "<end>")] == [1, 2, 354, 355]
    assert added.vocab_size == 356
    assert added.encode("<start>") == PLAIN.encode("<start>")
    assert added.token_bytes(354) == b""


@pytest.mark.parametrize("name", ["<start>", "a", "<0x0A>", ""])
def test_only_a_special_token_is_found_by_name(name: str) -> None:
    with pytest.raises(TokenizerError, match="lacks"):
        PLAIN.special_id(name)


@given(typed)
def test_a_token_can_be_one_byte(text: str) -> None:
    tokenizer = ByteTokenizer(added=("<start>",))
    ids = tokenizer.encode(text, bos=True)
    assert ids == [1, *(3 + byte for byte in text.encode())]
    assert tokenizer.decode(ids) == text
    assert tokenizer.special_id("<start>") == 259

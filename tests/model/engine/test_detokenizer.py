"""The texts returned are the answer, cut and stripped, however it is divided into tokens."""

import itertools
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.engine.detokenizer import Detokenizer


class Pieces:
    """A vocabulary of the given byte strings, followed by the end-of-sequence token."""

    def __init__(self, pieces: Sequence[bytes]) -> None:
        self._pieces = pieces
        self.eos_id = len(pieces)

    def token_bytes(self, token_id: int) -> bytes:
        return self._pieces[token_id]


def deltas(pieces: Sequence[bytes], stop: Sequence[str] = ()) -> list[str]:
    """The text returned for each piece up to a stop string, and the text returned at the end."""
    detokenizer = Detokenizer(Pieces(pieces), stop)
    returned = []
    for token_id in range(len(pieces)):
        returned.append(detokenizer.feed(token_id))
        if detokenizer.stopped:
            break
    return [*returned, detokenizer.flush()]


def whole(pieces: Sequence[bytes], stop: Sequence[str]) -> str:
    """The same answer computed from all bytes at once."""
    text = b"".join(pieces).decode("utf-8", errors="replace")
    for end in range(1, len(text) + 1):
        met = [len(each) for each in stop if text[:end].endswith(each)]
        if met:
            return text[: end - max(met)].strip()
    return text.strip()


def test_words_are_returned_as_they_arrive_without_the_first_space() -> None:
    assert deltas([b" A", b" red", b" circle", b"."]) == ["A", " red", " circle", ".", ""]


def test_a_character_of_several_tokens_is_returned_when_it_is_complete() -> None:
    assert deltas([b"\xf0", b"\x9f", b"\x8e", b"\xac", b"!"]) == ["", "", "", "\N{CLAPPER BOARD}", "!", ""]


def test_invalid_bytes_are_returned_as_replacement_characters() -> None:
    assert deltas([b"a\xe2\x82", b"b", b"\xe2"]) == ["a", "\ufffdb", "", "\ufffd"]


def test_a_stop_string_is_found_across_tokens_and_no_part_of_it_is_returned() -> None:
    assert deltas([b"yes ", b"#", b"##", b" Human: hi"], ["###"]) == ["yes", "", "", ""]


def test_text_that_only_begins_like_a_stop_string_is_returned_later() -> None:
    assert deltas([b"a ##", b" b"], ["###"]) == ["a", " ## b", ""]
    assert deltas([b"a ##"], ["###"]) == ["a", " ##"]


def test_white_space_is_returned_only_between_words() -> None:
    assert deltas([b" ", b"\n", b" a", b"\n", b" ", b"b", b" \n"]) == ["", "", "a", "", "", "\n b", "", ""]


def test_the_first_stop_string_to_be_complete_ends_the_answer_in_one_token_or_many() -> None:
    stop = ["abcd", "bc"]
    assert "".join(deltas([b"xabcd"], stop)) == "".join(deltas([b"x", b"a", b"b", b"c", b"d"], stop)) == "xa"


def test_no_text_follows_a_stop_string() -> None:
    detokenizer = Detokenizer(Pieces([b"a#", b"b"]), ["#"])
    assert detokenizer.feed(0) == "a"
    assert (detokenizer.feed(1), detokenizer.flush()) == ("", "")


# Few letters, so that stop strings, their beginnings and incomplete characters often occur together.
PIECES = st.lists(
    st.one_of(
        st.binary(max_size=3),
        st.text("ab# \n\u00a0é€🎬", max_size=4).map(str.encode),
        st.sampled_from([b"\xf0\x9f", b"\x8e\xac", b"\xc3", b"\xa9", b"\xe2\x82"]),
    ),
    max_size=12,
)
STOPS = st.lists(st.text("ab# \né€\ufffd", min_size=1, max_size=4), max_size=4)


@given(pieces=PIECES, stop=STOPS)
def test_the_deltas_together_are_the_cut_and_stripped_text(pieces: list[bytes], stop: list[str]) -> None:
    assert "".join(deltas(pieces, stop)) == whole(pieces, stop)


@given(text=st.text("ab# é€🎬"), stop=STOPS, data=st.data())
def test_no_division_into_tokens_makes_a_replacement_character(text: str, stop: list[str], data: st.DataObject) -> None:
    encoded = text.encode()
    borders = sorted(data.draw(st.sets(st.integers(0, len(encoded)))) | {0, len(encoded)})
    pieces = [encoded[a:b] for a, b in itertools.pairwise(borders)]
    assert "\ufffd" not in "".join(deltas(pieces, stop))
    assert "".join(deltas(pieces, stop)) == whole([encoded], stop)


@given(
    words=st.lists(st.text("ab# é€", max_size=4)),
    stop=st.lists(st.text("ab#", min_size=1, max_size=4), max_size=3),
)
def test_only_the_beginning_of_a_stop_string_is_held_back(words: list[str], stop: list[str]) -> None:
    held = deltas([word.encode() for word in words], stop)[-1].lstrip()
    assert held == "" or any(each.startswith(held) for each in stop)


@pytest.mark.parametrize("stop", [[], ["###"]])
def test_an_answer_of_white_space_is_empty(stop: list[str]) -> None:
    assert set(deltas([b" "] * 2000, stop)) == {""}

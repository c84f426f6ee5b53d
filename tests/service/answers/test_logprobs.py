"""A token is told of when its text has left, and one that was cut off never is."""

from hypothesis import given
from hypothesis import strategies as st

from model.engine.detokenizer import Detokenizer
from service.answers.logprobs import LogprobBuffer
from service.workers.protocol import LikelyToken, TokenLogprobs


class Pieces:
    """A vocabulary of the byte strings a test needs."""

    eos_id = -1

    def __init__(self, pieces: list[bytes]) -> None:
        self._pieces = pieces

    def token_bytes(self, token_id: int) -> bytes:
        return self._pieces[token_id]


def logprobs_of(piece: bytes) -> tuple[TokenLogprobs, ...]:
    return (TokenLogprobs(LikelyToken(piece, -1.0), ()),)


def told_of(pieces: list[bytes], stop: list[str]) -> tuple[str, list[bytes]]:
    """The text of an answer made of these pieces, and the tokens that are told of; checked at each step."""
    detokenizer, told = Detokenizer(Pieces(pieces), stop), LogprobBuffer()
    text, tokens = "", []
    for number, piece in enumerate(pieces):
        left = detokenizer.feed(number)
        if detokenizer.stopped or number == len(pieces) - 1:
            left += detokenizer.flush()
        text += left
        tokens += [each.chosen.token for each in told.take(logprobs_of(piece), left)]
        spelled = b"".join(tokens).decode("utf-8", "replace").lstrip()
        assert spelled.startswith(text.rstrip("\ufffd")), "no word leaves without its tokens"
        if detokenizer.stopped:
            break
    return text, tokens


def test_the_space_before_the_first_word_is_its_token_s() -> None:
    assert told_of([b" There", b" are", b""], []) == ("There are", [b" There", b" are"])


def test_a_stop_string_is_not_told_of_but_the_word_it_begins_in_is() -> None:
    assert told_of([b" It", b" is##", b"#", b" Human"], ["###"]) == ("It is", [b" It", b" is##"])
    assert told_of([b" It", b"\n", b"##", b"#"], ["###"]) == ("It", [b" It"])


def test_a_character_in_two_tokens_is_told_of_with_both() -> None:
    assert told_of([b"caf", b"\xc3", b"\xa9", b"!"], []) == ("café!", [b"caf", b"\xc3", b"\xa9", b"!"])


@given(
    words=st.lists(
        st.sampled_from([b" a", b"b", b"#", b"##", b"\n", b" ", b"\xc3", b"\xa9", b"\xe2\x9c", b"\x85"]), min_size=1
    )
)
def test_whatever_is_said_every_word_s_tokens_are_told_of(words: list[bytes]) -> None:
    text, tokens = told_of(words, ["###", "b\n"])
    assert words[: len(tokens)] == tokens, "in order, and none left out"
    assert bool(tokens) == bool(text)

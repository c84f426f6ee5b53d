"""Log probabilities are reported with the text of their token; those of a cut-off stop string are not reported."""

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


def reported(pieces: list[bytes], stop: list[str]) -> tuple[str, list[bytes]]:
    """Return the text of an answer made of these pieces, and the reported tokens; checks each step."""
    detokenizer, buffer = Detokenizer(Pieces(pieces), stop), LogprobBuffer()
    text, tokens = "", []
    for number, piece in enumerate(pieces):
        left = detokenizer.feed(number)
        if detokenizer.stopped or number == len(pieces) - 1:
            left += detokenizer.flush()
        text += left
        tokens += [each.chosen.token for each in buffer.take(logprobs_of(piece), left)]
        spelled = b"".join(tokens).decode("utf-8", "replace").lstrip()
        assert spelled.startswith(text.rstrip("\ufffd")), "no word leaves without its tokens"
        if detokenizer.stopped:
            break
    return text, tokens


def test_the_space_before_the_first_word_belongs_to_its_token() -> None:
    assert reported([b" There", b" are", b""], []) == ("There are", [b" There", b" are"])


def test_a_stop_string_is_not_reported_but_the_token_it_begins_in_is() -> None:
    assert reported([b" It", b" is##", b"#", b" Human"], ["###"]) == ("It is", [b" It", b" is##"])
    assert reported([b" It", b"\n", b"##", b"#"], ["###"]) == ("It", [b" It"])


def test_a_character_in_two_tokens_is_reported_with_both() -> None:
    assert reported([b"caf", b"\xc3", b"\xa9", b"!"], []) == ("café!", [b"caf", b"\xc3", b"\xa9", b"!"])


@given(
    words=st.lists(
        st.sampled_from([b" a", b"b", b"#", b"##", b"\n", b" ", b"\xc3", b"\xa9", b"\xe2\x9c", b"\x85"]), min_size=1
    )
)
def test_whatever_is_said_every_word_s_tokens_are_reported(words: list[bytes]) -> None:
    text, tokens = reported(words, ["###", "b\n"])
    assert words[: len(tokens)] == tokens, "in order, and none left out"
    assert bool(tokens) == bool(text)

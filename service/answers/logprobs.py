"""Which tokens of an answer may be told of: those of which a character has left. No I/O."""

import codecs
from collections import deque

from service.workers.protocol import TokenLogprobs


class ToldTokens:
    """Holds back what is known of a token until its text leaves; of a stop string that was cut off it never does.

    The text of an answer is its tokens' without white space at both ends, so places are counted in characters of it.
    """

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._num_spelled = 0
        self._num_left = 0
        self._held: deque[tuple[int, TokenLogprobs]] = deque()

    def take(self, tokens: tuple[TokenLogprobs, ...], text: str) -> tuple[TokenLogprobs, ...]:
        """Take the tokens of a step and the text that left with it; returns the tokens that may be told of now."""
        for token in tokens:
            self._held.append((self._num_spelled, token))
            spelled = self._decoder.decode(token.chosen.token)
            self._num_spelled += len(spelled if self._num_spelled else spelled.lstrip())
        self._num_left += len(text)
        told = []
        while self._held and self._held[0][0] < self._num_left:
            told.append(self._held.popleft()[1])
        return tuple(told)

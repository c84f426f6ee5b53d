"""Log probabilities, held back until the text of their token has been released. No I/O."""

import codecs
from collections import deque

from service.workers.protocol import TokenLogprobs


class LogprobBuffer:
    """Holds each token's log probabilities back until its text is released; those of a cut-off stop string never are.

    The text of an answer is the text of its tokens without white space at both ends, so positions count its characters.
    """

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._num_decoded = 0
        self._num_released = 0
        self._held: deque[tuple[int, TokenLogprobs]] = deque()

    def take(self, tokens: tuple[TokenLogprobs, ...], text: str) -> tuple[TokenLogprobs, ...]:
        """Add the tokens of a step and the text that it released; return the tokens that can be reported now."""
        for token in tokens:
            self._held.append((self._num_decoded, token))
            decoded = self._decoder.decode(token.chosen.token)
            self._num_decoded += len(decoded if self._num_decoded else decoded.lstrip())
        self._num_released += len(text)
        released = []
        while self._held and self._held[0][0] < self._num_released:
            released.append(self._held.popleft()[1])
        return tuple(released)

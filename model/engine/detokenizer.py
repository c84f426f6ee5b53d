"""Turns the tokens of one answer into text as they come; lets out only what no later token can take back."""

import codecs
from collections.abc import Sequence
from typing import Protocol


class Vocabulary(Protocol):
    """What the engine needs of a tokenizer."""

    @property
    def eos_id(self) -> int:
        """The token that ends an answer."""

    def token_bytes(self, token_id: int) -> bytes:
        """The UTF-8 bytes a token stands for, its leading space included; nothing for a special token."""


class Detokenizer:
    """The text of one answer: cut before the first stop string to be completed, then stripped of white space.

    Held back are half characters, the beginning of what may become a stop string, and trailing white space.
    All deltas together are the answer; bytes that are no UTF-8 become U+FFFD, as `bytes.decode` has it.
    """

    def __init__(self, vocabulary: Vocabulary, stop: Sequence[str]) -> None:
        self._vocabulary = vocabulary
        self._stop = tuple(stop)
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._held = ""
        self._begun = False
        self._text = ""
        self.stopped = False
        """Whether a stop string was met; nothing after it is text of the answer."""

    @property
    def text(self) -> str:
        """All that has left."""
        return self._text

    def copy(self) -> "Detokenizer":
        """Another one that has been fed the same."""
        other = Detokenizer(self._vocabulary, self._stop)
        other._decoder.setstate(self._decoder.getstate())
        other._held, other._begun, other._text, other.stopped = self._held, self._begun, self._text, self.stopped
        return other

    def feed(self, token_id: int) -> str:
        """Take one more token; returns the text that may leave now."""
        return self._take(self._decoder.decode(self._vocabulary.token_bytes(token_id)))

    def flush(self) -> str:
        """No token will follow; returns the rest of the text."""
        text = self._take(self._decoder.decode(b"", final=True))
        return text + self._let_out(len(self._held))

    def _take(self, text: str) -> str:
        if self.stopped:
            return ""
        self._held += text
        cut = self._find_stop(len(self._held) - len(text))
        if cut is None:
            return self._let_out(self._safe_length())
        self.stopped = True
        delta = self._let_out(cut)
        self._held = ""
        return delta

    def _find_stop(self, num_old: int) -> int | None:
        """Where the first stop string to be completed begins; the `num_old` first characters complete none.

        The first to be completed, not the first to begin, so that it does not matter how tokens cut the text.
        """
        found = []
        for stop in self._stop:
            start = self._held.find(stop, max(0, num_old - len(stop) + 1))
            if start >= 0:
                found.append((start + len(stop), start))
        return min(found)[1] if found else None

    def _safe_length(self) -> int:
        """Length of the held text before the earliest place where a stop string may have begun."""
        longest = max(map(len, self._stop), default=0)
        for start in range(max(0, len(self._held) - longest + 1), len(self._held)):
            if any(stop.startswith(self._held[start:]) for stop in self._stop):
                return start
        return len(self._held)

    def _let_out(self, length: int) -> str:
        """The first `length` held characters, less trailing (and, at the beginning, leading) white space."""
        text = self._held[:length].rstrip()
        if not text:
            return ""
        self._held = self._held[len(text) :]
        if not self._begun:
            text = text.lstrip()
            self._begun = True
        self._text += text
        return text

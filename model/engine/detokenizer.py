"""The detokenizer: turns the tokens of an answer into text as they arrive, and returns only text that is final."""

import codecs
from collections.abc import Sequence
from typing import Protocol


class Vocabulary(Protocol):
    """The part of a tokenizer that the engine uses."""

    @property
    def eos_id(self) -> int:
        """The token that ends an answer."""

    def token_bytes(self, token_id: int) -> bytes:
        """The UTF-8 bytes of a token, including its leading space; empty for a special token."""


class Detokenizer:
    """The text of one answer: cut before the first stop string that is completed, then stripped of white space.

    Incomplete characters, possible beginnings of stop strings, and trailing white space are held back. All returned
    texts together are the answer. Invalid UTF-8 becomes U+FFFD, as in `bytes.decode` with `errors="replace"`.
    """

    def __init__(self, vocabulary: Vocabulary, stop: Sequence[str]) -> None:
        self._vocabulary = vocabulary
        self._stop = tuple(stop)
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._held = ""
        self._has_text = False
        self._text = ""
        self.stopped = False
        """Whether a stop string is complete; no further text belongs to the answer."""

    @property
    def text(self) -> str:
        """All text returned so far."""
        return self._text

    def copy(self) -> "Detokenizer":
        """A detokenizer in the same state, to be continued differently."""
        other = Detokenizer(self._vocabulary, self._stop)
        other._decoder.setstate(self._decoder.getstate())
        other._held, other._has_text, other._text = self._held, self._has_text, self._text
        other.stopped = self.stopped
        return other

    def feed(self, token_id: int) -> str:
        """Add a token; returns the text that is final now."""
        return self._add(self._decoder.decode(self._vocabulary.token_bytes(token_id)))

    def flush(self) -> str:
        """End the answer; returns the rest of its text."""
        text = self._add(self._decoder.decode(b"", final=True))
        return text + self._release(len(self._held))

    def _add(self, text: str) -> str:
        if self.stopped:
            return ""
        self._held += text
        cut = self._find_stop(len(self._held) - len(text))
        if cut is None:
            return self._release(self._safe_length())
        self.stopped = True
        delta = self._release(cut)
        self._held = ""
        return delta

    def _find_stop(self, num_old: int) -> int | None:
        """Index at which the first completed stop string begins; none is complete in the first `num_old` characters.

        The first one completed counts, not the first one begun, so that the result does not depend on how the text is
        divided into tokens.
        """
        found = []
        for stop in self._stop:
            start = self._held.find(stop, max(0, num_old - len(stop) + 1))
            if start >= 0:
                found.append((start + len(stop), start))
        return min(found)[1] if found else None

    def _safe_length(self) -> int:
        """Length of the held text before the first place at which a stop string may have begun."""
        longest = max(map(len, self._stop), default=0)
        for start in range(max(0, len(self._held) - longest + 1), len(self._held)):
            if any(stop.startswith(self._held[start:]) for stop in self._stop):
                return start
        return len(self._held)

    def _release(self, length: int) -> str:
        """Return the first `length` held characters without trailing (and, in the first text, leading) white space."""
        text = self._held[:length].rstrip()
        if not text:
            return ""
        self._held = self._held[len(text) :]
        if not self._has_text:
            text = text.lstrip()
            self._has_text = True
        self._text += text
        return text

"""Whether there is room for one more answer: a queue bounded in sequences and in tokens. No I/O; `answering` counts."""

import math
import time
from collections import deque
from dataclasses import dataclass

from service.errors import Overloaded
from service.observability.metrics import Metrics
from service.settings import Settings

_PACE_SECONDS = 10.0  # the past that tells how fast answers end
_LONGEST_WAIT = 30


@dataclass(slots=True, eq=False)
class Place:
    """What one answer takes of the queue while it waits for its first token."""

    num_sequences: int = 1
    num_tokens: int = 0
    """Of its prompt; 0 until they are counted."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Load:
    """Answers of this replica, and what of them still waits for its first token."""

    num_answers: int
    num_sequences: int
    num_tokens: int


class Admission:
    """Refuses what would only wait: capacity is ours, so the refusal is a 503 that says when to come again."""

    def __init__(self, settings: Settings, metrics: Metrics) -> None:
        self._settings = settings
        self._metrics = metrics
        self._ends: deque[float] = deque()

    def check_sequences(self, load: Load, *, num_sequences: int) -> None:
        """Refuse an answer of so many sequences if the queue has no room for them.

        Raises:
            Overloaded: the reason is a label of `admission_rejections`.
        """
        settings = self._settings
        if load.num_answers >= settings.max_pending_answers:
            raise self._refusal(load, "max_pending_answers")
        if load.num_sequences + num_sequences > max(settings.max_queued_sequences, num_sequences):
            raise self._refusal(load, "max_queued_sequences")

    def check_tokens(self, load: Load, *, num_tokens: int) -> None:
        """Refuse a prompt if the queue has no room for it. One alone has room, however long it is.

        Raises:
            Overloaded: the reason is a label of `admission_rejections`.
        """
        if load.num_tokens and load.num_tokens + num_tokens > self._settings.max_queued_tokens:
            raise self._refusal(load, "max_queued_tokens")

    def answer_ended(self) -> None:
        """Take note that a place has become free."""
        self._ends.append(time.monotonic())
        self._forget_old()

    def _refusal(self, load: Load, reason: str) -> Overloaded:
        self._metrics.admission_rejections.labels(reason).inc()
        return Overloaded(
            "overloaded", "Too many answers are being given; try again in a moment.", retry_after=self._wait(load)
        )

    def _wait(self, load: Load) -> int:
        """Seconds in which half of those who wait will have been served, at the pace of the last moments."""
        self._forget_old()
        pace = len(self._ends) / _PACE_SECONDS
        half = math.ceil(load.num_sequences / 2 / pace) if pace else Overloaded.default_retry_after or 1
        return min(max(half, 1), _LONGEST_WAIT)

    def _forget_old(self) -> None:
        while self._ends and self._ends[0] < time.monotonic() - _PACE_SECONDS:
            self._ends.popleft()

"""Admission: places for answers within bounds, and whether this replica still accepts new work. No I/O."""

import math
import time
from collections import deque
from dataclasses import dataclass, field

from service.errors import Overloaded, Unavailable
from service.observability.metrics import Metrics
from service.settings import Settings

_PACE_SECONDS = 10.0  # the window over which the rate of ending answers is measured
_MAX_RETRY_AFTER = 30


@dataclass(slots=True, eq=False)
class Place:
    """The place of one answer. It counts as queued until `start`, and as an answer until `release`."""

    _admission: "Admission"
    num_sequences: int = 1
    num_tokens: int = 0
    """Tokens of the prompt; 0 until they are counted."""
    is_queued: bool = True

    def start(self) -> None:
        """Leave the queue: the first token has arrived, or the answer has ended without one."""
        self.is_queued = False

    def release(self) -> None:
        """Give the place back. Further calls do nothing."""
        self._admission.release(self)


@dataclass(slots=True, eq=False)
class Admission:
    """Bounds the answers of one replica. A refusal is a 503 with `Retry-After`, because capacity is the server's."""

    settings: Settings
    metrics: Metrics
    _places: set[Place] = field(default_factory=set)
    _ends: deque[float] = field(default_factory=deque)
    _is_open: bool = True

    def __post_init__(self) -> None:
        self.metrics.num_queued_sequences.set_function(lambda: self.num_queued_sequences)
        self.metrics.num_queued_tokens.set_function(lambda: self.num_queued_tokens)

    @property
    def num_answers(self) -> int:
        """Answers that are running, queued, or being checked."""
        return len(self._places)

    @property
    def num_queued_sequences(self) -> int:
        """Sequences without a first token; a beam search counts each beam."""
        return sum(place.num_sequences for place in self._places if place.is_queued)

    @property
    def num_queued_tokens(self) -> int:
        """Prompt tokens of the queued sequences, as far as they are counted."""
        return sum(place.num_tokens for place in self._places if place.is_queued)

    def close(self) -> None:
        """Accept nothing new from now on."""
        self._is_open = False

    def check_open(self) -> None:
        """Refuse new work while the replica drains.

        Raises:
            Unavailable: the replica is draining.
        """
        if not self._is_open:
            raise Unavailable("draining", "This replica is stopping and accepts no new work; use another replica.")

    def take(self, num_sequences: int) -> Place:
        """Take a place for a new answer.

        Raises:
            Overloaded: a bound is reached; the reason is a label of the metric `admission_rejections`.
        """
        if self.num_answers >= self.settings.max_pending_answers:
            raise self._refusal("max_pending_answers")
        if self.num_queued_sequences + num_sequences > max(self.settings.max_queued_sequences, num_sequences):
            raise self._refusal("max_queued_sequences")
        return self.take_unbounded(num_sequences)

    def take_unbounded(self, num_sequences: int) -> Place:
        """Take a place for an answer that was accepted before, by this replica or another."""
        place = Place(self, num_sequences)
        self._places.add(place)
        return place

    def reserve_tokens(self, place: Place, *, num_tokens: int) -> None:
        """Reserve space for a prompt once its tokens are counted. A prompt that is alone in the queue always fits.

        Raises:
            Overloaded: the queue has no space for so many tokens.
        """
        queued = self.num_queued_tokens - (place.num_tokens if place.is_queued else 0)
        if queued and queued + num_tokens > self.settings.max_queued_tokens:
            raise self._refusal("max_queued_tokens")
        place.num_tokens = num_tokens

    def release(self, place: Place) -> None:
        """Free a place. The time is noted to estimate the wait of later callers, unless the question was refused."""
        if place in self._places:
            self._places.remove(place)
            if not place.is_queued:
                self._ends.append(time.monotonic())
            self._drop_old_ends()

    def _refusal(self, reason: str) -> Overloaded:
        self.metrics.admission_rejections.labels(reason).inc()
        return Overloaded(
            "overloaded", "Too many answers are in progress; try again in a moment.", retry_after=self._retry_after()
        )

    def _retry_after(self) -> int:
        """Estimate the seconds until half of the queue is served, from the rate at which answers ended lately."""
        self._drop_old_ends()
        rate = len(self._ends) / _PACE_SECONDS
        seconds = math.ceil(self.num_queued_sequences / 2 / rate) if rate else Overloaded.default_retry_after or 1
        return min(max(seconds, 1), _MAX_RETRY_AFTER)

    def _drop_old_ends(self) -> None:
        while self._ends and self._ends[0] < time.monotonic() - _PACE_SECONDS:
            self._ends.popleft()

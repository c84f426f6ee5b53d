"""Who computes what in the next step. Pure Python: it knows of token counts, never of tensors or text."""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

from model.engine.config import EngineConfig
from model.engine.output import FinishReason
from model.engine.sequence import Sequence


@dataclass(frozen=True, slots=True, eq=False)
class Chunk:
    """Positions [start, end) of a sequence, to be computed in this step.

    `sampled` where they reach the last known token, so that the last row's logits choose the next one.
    """

    sequence: Sequence
    start: int
    end: int
    sampled: bool

    @property
    def num_tokens(self) -> int:
        """Rows it takes in the packed forward pass."""
        return self.end - self.start

    def __repr__(self) -> str:
        return f"{self.sequence.request_id} [{self.start}:{self.end}]{'*' if self.sampled else ''}"


@dataclass(frozen=True, slots=True, eq=False)
class Schedule:
    """One step's work: chunks to compute, and sequences that ended before it, whose cache is to be freed."""

    chunks: tuple[Chunk, ...]
    ended: tuple[Sequence, ...]

    def __repr__(self) -> str:
        chunks = ", ".join(map(repr, self.chunks)) or "nothing"
        ended = ", ".join(f"{sequence.request_id} {sequence.finish_reason}" for sequence in self.ended)
        return f"compute {chunks}; ended {ended or 'none'}"


class Scheduler:
    """First come, first served, under `max_num_seqs` and `max_num_batched_tokens`.

    Running sequences are kept in order of arrival, and the next one is admitted only while budget is left.
    So at most the last is still in prefill, and those that decode are always served before it.
    """

    def __init__(self, config: EngineConfig) -> None:
        self._config = config
        self._waiting: deque[Sequence] = deque()
        self._running: list[Sequence] = []

    @property
    def num_waiting(self) -> int:
        """Sequences of which nothing is computed yet."""
        return len(self._waiting)

    @property
    def num_running(self) -> int:
        """Sequences that hold a cache."""
        return len(self._running)

    @property
    def has_work(self) -> bool:
        """Whether the next `schedule()` would do or report anything."""
        return bool(self._waiting or self._running)

    def add(self, sequence: Sequence) -> None:
        """Queue a sequence. One that already carries a finish reason is only passed on as ended."""
        assert sequence.status == "waiting" and sequence.num_computed_tokens == 0
        self._waiting.append(sequence)

    def abort(self, request_id: str) -> bool:
        """End a sequence at the next `schedule()`; False if there is none of this id."""
        for sequence in self._sequences():
            if sequence.request_id == request_id:
                sequence.finish_reason = sequence.finish_reason or "abort"
                return True
        return False

    def schedule(self) -> Schedule:
        """Let go who has ended, admit who fits, and hand out the token budget. All state moves here."""
        ended = self._release()
        budget = self._config.max_num_batched_tokens
        chunks = []
        for sequence in self._running:
            if budget == 0:
                break
            chunks.append(_advance(sequence, budget))
            budget -= chunks[-1].num_tokens
        while self._waiting and budget and len(self._running) < self._config.max_num_seqs:
            chunks.append(_advance(self._admit(), budget))
            budget -= chunks[-1].num_tokens
        return Schedule(tuple(chunks), ended)

    def finish(self, sequence: Sequence, reason: FinishReason) -> None:
        """Take a running sequence out: its answer is complete, or it has failed."""
        self._running.remove(sequence)
        sequence.finish_reason = reason
        sequence.status = "finished"

    def _sequences(self) -> Iterator[Sequence]:
        yield from self._running
        yield from self._waiting

    def _release(self) -> tuple[Sequence, ...]:
        ended = tuple(sequence for sequence in self._sequences() if sequence.finish_reason)
        if ended:
            self._running = [sequence for sequence in self._running if not sequence.finish_reason]
            self._waiting = deque(sequence for sequence in self._waiting if not sequence.finish_reason)
        for sequence in ended:
            sequence.status = "finished"
        return ended

    def _admit(self) -> Sequence:
        sequence = self._waiting.popleft()
        sequence.status = "running"
        self._running.append(sequence)
        return sequence

    def __repr__(self) -> str:
        running = ", ".join(map(repr, self._running)) or "none"
        waiting = ", ".join(map(repr, self._waiting)) or "none"
        return f"running {running}; waiting {waiting}"


def _advance(sequence: Sequence, budget: int) -> Chunk:
    """The sequence's next tokens, as many as the budget allows; they count as computed from now on."""
    num_tokens = min(sequence.num_uncomputed_tokens, budget)
    assert num_tokens > 0, "a running sequence always has a token to compute"
    start = sequence.num_computed_tokens
    sequence.num_computed_tokens += num_tokens
    return Chunk(sequence, start, start + num_tokens, sampled=sequence.num_computed_tokens == sequence.num_tokens)

"""Who computes what in the next step, and in which blocks. Pure Python: it never knows of tensors or text."""

import math
import time
from bisect import insort
from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import takewhile

from model.engine.block_pool import BlockPool
from model.engine.config import EngineConfig
from model.engine.output import FinishReason
from model.engine.sequence import Sequence


@dataclass(frozen=True, slots=True, eq=False)
class Chunk:
    """Positions [start, end) of a sequence, to be computed in this step.

    `sampled` where they reach the last known token, so that the last row's logits choose the next one. The first
    `num_shared_blocks` of the sequence's blocks others hold too.
    """

    sequence: Sequence
    start: int
    end: int
    sampled: bool
    num_shared_blocks: int = 0

    @property
    def num_tokens(self) -> int:
        """Rows it takes in the packed forward pass."""
        return self.end - self.start

    def __repr__(self) -> str:
        return f"{self.sequence.request_id} [{self.start}:{self.end}]{'*' if self.sampled else ''}"


@dataclass(frozen=True, slots=True, eq=False)
class Schedule:
    """One step's work: chunks to compute, and sequences that ended before it."""

    chunks: tuple[Chunk, ...]
    ended: tuple[Sequence, ...]

    def __repr__(self) -> str:
        chunks = ", ".join(map(repr, self.chunks)) or "nothing"
        ended = ", ".join(f"{sequence.request_id} {sequence.finish_reason}" for sequence in self.ended)
        return f"compute {chunks}; ended {ended or 'none'}"


class Scheduler:
    """First come, first served among those of one priority, under bounds on sequences, tokens of a step, and blocks.

    Sequences are kept in order of rank, and those that decode are served before any prefill. Where no block is left for
    one, the last in rank gives back its own and waits again, first in line of its priority; what it had computed stays
    findable until somebody needs the room.

    A block is findable as soon as the step that fills it is scheduled: in every layer the runner writes all keys
    and values of a step before any row looks at them.

    Beside decode a chunk is the shorter the more it looks back on, so that each step takes about as long: with
    `half_speed_context` tokens before it a token takes twice the time of a prompt's first.
    """

    def __init__(self, config: EngineConfig, *, half_speed_context: float = math.inf) -> None:
        self._config = config
        self._half_speed_context = half_speed_context
        self._pool = BlockPool(config.num_blocks)
        self._waiting: deque[Sequence] = deque()
        self._running: list[Sequence] = []
        self._num_arrived = 0
        self.num_preemptions = 0

    @property
    def pool(self) -> BlockPool:
        """The blocks and who holds them."""
        return self._pool

    @property
    def num_waiting(self) -> int:
        """Sequences that hold no block."""
        return len(self._waiting)

    @property
    def num_running(self) -> int:
        """Sequences that hold blocks."""
        return len(self._running)

    @property
    def has_work(self) -> bool:
        """Whether the next `schedule()` would do or report anything."""
        return bool(self._waiting or self._running)

    def add(self, sequence: Sequence) -> None:
        """Queue a sequence. One that already carries a finish reason is only passed on as ended."""
        assert sequence.status == "waiting" and sequence.num_computed_tokens == 0
        sequence.arrival = self._num_arrived
        self._num_arrived += 1
        self._wait(sequence)

    def fork(self, sequence: Sequence, twin: Sequence) -> list[tuple[int, int]]:
        """Let a twin of a sequence run, or wait if it must; returns the block to copy, from and to, if there is one.

        All full blocks are shared. A twin that has to wait finds most of them when it is admitted.
        """
        num_full, rest = divmod(sequence.num_computed_tokens, self._config.block_size)
        is_full = len(self._running) == self._config.max_num_seqs or (rest and not self._pool.num_free)
        if sequence.status != "running" or is_full:
            self._wait(twin)
            return []
        shared = sequence.block_table[:num_full]
        for block in shared:
            self._pool.share(block)
        twin.block_table = shared + (self._pool.take(1) if rest else [])
        twin.num_computed_tokens = sequence.num_computed_tokens
        twin.status = "running"
        insort(self._running, twin, key=lambda each: each.rank)
        return [(sequence.block_table[num_full], twin.block_table[num_full])] if rest else []

    def abort(self, request_id: str) -> bool:
        """End all sequences of a request at the next `schedule()`; False if there is none."""
        found = [sequence for sequence in self._sequences() if sequence.request_id == request_id]
        for sequence in found:
            sequence.finish_reason = sequence.finish_reason or "abort"
        return bool(found)

    def schedule(self) -> Schedule:
        """Let go who has ended, make room, admit who fits, and hand out the token budget. All state moves here."""
        ended = self._release()
        self._make_room()
        chunks = []
        budget = self._config.max_num_batched_tokens
        for sequence in self._running:
            if sequence.num_uncomputed_tokens == 1:
                chunks.append(self._advance(sequence, 1))
                budget -= 1
        time_left = self._config.max_prefill_beside_decode if chunks else math.inf  # a prompt's first token takes 1

        def prefill(sequence: Sequence) -> None:
            nonlocal budget, time_left
            slowness = 1 + sequence.num_computed_tokens / self._half_speed_context
            chunk = self._advance(sequence, max(1, int(min(budget, time_left / slowness))))
            budget -= chunk.num_tokens
            time_left -= chunk.num_tokens * slowness
            chunks.append(chunk)

        for sequence in self._running:
            if budget and time_left >= 1 and sequence.num_uncomputed_tokens:
                prefill(sequence)
        while budget and time_left >= 1 and (admitted := self._admit(must=not chunks)):
            prefill(admitted)
        return Schedule(tuple(map(self._with_shared, chunks)), ended)

    def finish(self, sequence: Sequence, reason: FinishReason) -> None:
        """Take a sequence out: its answer is complete, or it has failed, and nobody shall find its blocks."""
        (self._running if sequence.status == "running" else self._waiting).remove(sequence)
        if reason == "error":
            self._pool.disown(sequence.block_table)
        self._let_go(sequence)
        sequence.finish_reason = reason
        sequence.status = "finished"

    def check(self) -> None:
        """Assert that every block is held by exactly those sequences that have it in their tables."""
        self._pool.check()
        held = Counter(block for sequence in self._sequences() for block in sequence.block_table)
        for block in range(self._pool.num_blocks):
            assert held[block] == self._pool.num_holders(block), f"block {block} is lost or owned twice"
        assert not any(sequence.block_table for sequence in self._waiting)

    def _sequences(self) -> Iterator[Sequence]:
        yield from self._running
        yield from self._waiting

    def _release(self) -> tuple[Sequence, ...]:
        ended = tuple(sequence for sequence in self._sequences() if sequence.finish_reason)
        if ended:
            self._running = [sequence for sequence in self._running if not sequence.finish_reason]
            self._waiting = deque(sequence for sequence in self._waiting if not sequence.finish_reason)
        for sequence in ended:
            self._let_go(sequence)
            sequence.status = "finished"
        return ended

    def _make_room(self) -> None:
        """Give every running sequence the blocks of all its known tokens, at the cost of the last in rank."""
        for sequence in list(self._running):
            while sequence.status == "running":
                missing = self._config.blocks_for(sequence.num_tokens) - len(sequence.block_table)
                if missing <= self._pool.num_free:
                    self._extend(sequence, missing)
                    break
                self._preempt(self._running[-1])

    def _preempt(self, sequence: Sequence) -> None:
        self._running.remove(sequence)
        self._let_go(sequence)
        sequence.num_computed_tokens = 0
        self._wait(sequence)
        self.num_preemptions += 1

    def _wait(self, sequence: Sequence) -> None:
        """Queue a sequence where it belongs by its rank."""
        sequence.status = "waiting"
        behind = (place for place, other in enumerate(self._waiting) if other.rank > sequence.rank)
        self._waiting.insert(next(behind, len(self._waiting)), sequence)

    def _admit(self, *, must: bool) -> Sequence | None:
        """Let the first in line run, if there is a place and room for all that is known of it.

        Where otherwise nobody would compute anything (beams that wait for each other), it `must`: the last of those
        that run, all idle, make room for it.
        """
        if not self._waiting:
            return None
        sequence = self._waiting[0]
        while not self._fits(sequence):
            if not must or not self._running:
                return None
            self._preempt(self._running[-1])
            sequence = self._waiting[0]
        self._waiting.popleft()
        self._seat(sequence)
        return sequence

    def _fits(self, sequence: Sequence) -> bool:
        if len(self._running) == self._config.max_num_seqs:
            return False
        found = self._find_prefix(sequence)
        num_new = self._config.blocks_for(sequence.num_tokens) - len(found)
        # One block more for each that runs: who is admitted shall not be the next to be preempted.
        spare = len(self._running)
        return num_new + spare <= self._pool.num_free - sum(map(self._pool.is_free, found))

    def _seat(self, sequence: Sequence) -> None:
        """Give a sequence the blocks of all its known tokens: those of a known prefix, and new ones."""
        found = self._find_prefix(sequence)
        num_new = self._config.blocks_for(sequence.num_tokens) - len(found)
        for block in found:
            self._pool.share(block)
        sequence.block_table = found
        sequence.num_computed_tokens = sequence.num_cached_tokens = len(found) * self._config.block_size
        longest = sequence.num_prompt_tokens + sequence.max_output_tokens
        sequence.home = self._pool.settle(self._config.blocks_for(longest) - len(found))
        self._extend(sequence, num_new)
        sequence.status = "running"
        sequence.admitted_at = sequence.admitted_at or time.monotonic()
        insort(self._running, sequence, key=lambda each: each.rank)

    def _find_prefix(self, sequence: Sequence) -> list[int]:
        """The blocks of the longest known prefix, without the last token: its logits are wanted."""
        found: list[int] = []
        size = self._config.block_size
        if self._config.prefix_caching:
            for number in range((sequence.num_tokens - 1) // size):
                block = self._pool.find(sequence.block_key(number, size))
                if block is None:
                    break
                found.append(block)
        return found

    def _extend(self, sequence: Sequence, num_blocks: int) -> None:
        if num_blocks > 0:
            sequence.block_table += self._pool.take(num_blocks, wanted=sequence.home or ())

    def _let_go(self, sequence: Sequence) -> None:
        self._pool.give_back(sequence.block_table)
        sequence.block_table = []
        if sequence.home:
            self._pool.leave(sequence.home)
            sequence.home = None

    def _advance(self, sequence: Sequence, budget: int) -> Chunk:
        """The sequence's next tokens, as many as the budget allows; they count as computed from now on."""
        start = sequence.num_computed_tokens
        end = start + min(sequence.num_uncomputed_tokens, budget)
        assert start < end, "a running sequence always has a token to compute"
        sequence.num_computed_tokens = end
        size = self._config.block_size
        if self._config.prefix_caching:
            for number in range(start // size, end // size):
                self._pool.name(sequence.block_table[number], sequence.block_key(number, size))
        return Chunk(sequence, start, end, sampled=end == sequence.num_tokens)

    def _with_shared(self, chunk: Chunk) -> Chunk:
        blocks = takewhile(lambda block: self._pool.num_holders(block) > 1, chunk.sequence.block_table)
        num_shared = sum(1 for _ in blocks)
        return replace(chunk, num_shared_blocks=num_shared) if num_shared else chunk

    def __repr__(self) -> str:
        running = ", ".join(map(repr, self._running)) or "none"
        waiting = ", ".join(map(repr, self._waiting)) or "none"
        return f"running {running}; waiting {waiting}"

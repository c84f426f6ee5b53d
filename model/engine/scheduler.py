"""The scheduler: chooses what each step computes, and in which blocks. Pure Python: no tensors and no text.

It alone changes the state of sequences, one synchronous method a transition:

    add       -> waiting
    schedule  waiting -> running; running -> waiting (preempted); running or waiting -> finished (aborted)
    extend    running -> running with one token more, forked, or finished
    finish    -> finished
"""

import math
import time
from bisect import insort
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from collections.abc import Sequence as Ordered
from dataclasses import dataclass, replace

from model.engine.block_pool import BlockPool
from model.engine.config import EngineConfig
from model.engine.output import FinishReason
from model.engine.sequence import Sequence


@dataclass(frozen=True, slots=True, eq=False)
class Chunk:
    """Positions [start, end) of a sequence, to be computed in this step.

    `sampled` is true if they end with the last known token, so that the logits of the last row choose the next token.
    The first `num_shared_blocks` blocks of the sequence are held by other sequences too.
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
    """The work of one step: blocks to copy, then chunks to compute; and the sequences that ended before it."""

    chunks: tuple[Chunk, ...]
    ended: tuple[Sequence, ...] = ()
    copies: tuple[tuple[int, int], ...] = ()
    """Pairs of blocks, each copied from the first to the second, in order, before anything is computed."""

    def __repr__(self) -> str:
        chunks = ", ".join(map(repr, self.chunks)) or "nothing"
        ended = ", ".join(f"{sequence.request_id} {sequence.finish_reason}" for sequence in self.ended)
        copies = "".join(f"; copy {source} to {target}" for source, target in self.copies)
        return f"compute {chunks}; ended {ended or 'none'}{copies}"


class Scheduler:
    """Serves sequences by priority, then by arrival, within limits on sequences, tokens of a step, and blocks.

    Sequences that decode are served before any prefill. If no block is left for a sequence, the running sequence that
    is last in order is preempted: it frees its blocks and waits, first among those of its priority. What it had
    computed stays cached until the blocks are needed.

    A block can be found by its contents as soon as the step that fills it is scheduled, because in every layer the
    runner writes all keys and values of a step before any row reads them.

    While other sequences decode, a chunk of a prompt is shorter the more tokens come before it, so that all steps take
    about the same time: with `half_speed_context` tokens before it, a token takes twice the time of the first one.
    """

    def __init__(self, config: EngineConfig, *, half_speed_context: float = math.inf) -> None:
        self._config = config
        self._half_speed_context = half_speed_context
        self._pool = BlockPool(config.num_blocks)
        self._waiting: deque[Sequence] = deque()
        self._running: list[Sequence] = []
        self._copies: list[tuple[int, int]] = []
        self._num_arrived = 0
        self.num_preemptions = 0

    @property
    def num_waiting(self) -> int:
        """Sequences that hold no blocks."""
        return len(self._waiting)

    @property
    def num_running(self) -> int:
        """Sequences that hold blocks."""
        return len(self._running)

    @property
    def num_held_blocks(self) -> int:
        """Blocks that sequences hold."""
        return self._pool.num_blocks - self._pool.num_free

    @property
    def has_work(self) -> bool:
        """Whether the next `schedule()` computes or reports anything."""
        return bool(self._waiting or self._running)

    def add(self, sequence: Sequence) -> None:
        """Queue a sequence. One that has a finish reason is reported as ended by the next `schedule()`."""
        assert sequence.status == "waiting" and sequence.num_computed_tokens == 0
        sequence.arrival = self._num_arrived
        self._num_arrived += 1
        self._enqueue(sequence)

    def abort(self, request_id: str) -> bool:
        """End all sequences of a request at the next `schedule()`; returns False if there is none."""
        found = [sequence for sequence in self._sequences() if sequence.request_id == request_id]
        for sequence in found:
            sequence.finish_reason = sequence.finish_reason or "abort"
        return bool(found)

    def schedule(self) -> Schedule:
        """Remove ended sequences, allocate blocks, admit waiting sequences, and divide the token budget."""
        ended = self._remove_ended()
        self._allocate_for_running()
        chunks = []
        budget = self._config.max_num_batched_tokens
        for sequence in self._running:
            if sequence.num_uncomputed_tokens == 1:
                chunks.append(self._compute(sequence, 1))
                budget -= 1
        # In units of the time that the first token of a prompt takes.
        time_left = self._config.max_prefill_beside_decode if chunks else math.inf

        def prefill(sequence: Sequence) -> None:
            nonlocal budget, time_left
            slowness = 1 + sequence.num_computed_tokens / self._half_speed_context
            chunk = self._compute(sequence, max(1, int(min(budget, time_left / slowness))))
            budget -= chunk.num_tokens
            time_left -= chunk.num_tokens * slowness
            chunks.append(chunk)

        for sequence in self._running:
            if budget and time_left >= 1 and sequence.num_uncomputed_tokens:
                prefill(sequence)
        while budget and time_left >= 1 and (admitted := self._admit(must=not chunks)):
            prefill(admitted)
        copies, self._copies = tuple(self._copies), []
        return Schedule(tuple(map(self._with_shared, chunks)), ended, copies)

    def extend(self, sequences: Ordered[Sequence], continuations: Ordered[tuple[Sequence, int]]) -> list[Sequence]:
        """Append tokens to the sequences of one request.

        A sequence with one continuation gets its token. A sequence with several is forked: it gets the first token,
        and a new sequence gets each further one. A sequence without a continuation ends.

        Args:
            sequences: all sequences of the request.
            continuations: pairs of a sequence and its next token.

        Returns:
            The sequences of the request from now on, one for each continuation, in their order.
        """
        if len(sequences) == len(continuations) == 1:  # every sampled answer in every step
            sequences[0].output_token_ids.append(continuations[0][1])
            return [sequences[0]]
        parents = {parent for parent, _ in continuations}
        for sequence in sequences:
            if sequence not in parents:
                self._finish(sequence, "stop")
        extended = []
        for parent, _ in continuations:
            extended.append(parent if parent in parents else self._fork(parent))
            parents.discard(parent)
        for sequence, (_, token_id) in zip(extended, continuations, strict=True):
            sequence.output_token_ids.append(token_id)
        return extended

    def finish(self, sequences: Iterable[Sequence], reason: FinishReason) -> None:
        """End the sequences of a request. After an error their blocks cannot be found by their contents any more."""
        for sequence in sequences:
            self._finish(sequence, reason)

    def check(self) -> None:
        """Assert that every block is held by exactly those sequences that have it in their block tables."""
        self._pool.check()
        held = Counter(block for sequence in self._sequences() for block in sequence.block_table)
        for block in range(self._pool.num_blocks):
            assert held[block] == self._pool.num_holders(block), f"block {block} is lost or held twice"
        assert not any(sequence.block_table for sequence in self._waiting)

    def _sequences(self) -> Iterator[Sequence]:
        yield from self._running
        yield from self._waiting

    def _remove_ended(self) -> tuple[Sequence, ...]:
        ended = tuple(sequence for sequence in self._sequences() if sequence.finish_reason)
        if ended:
            self._running = [sequence for sequence in self._running if not sequence.finish_reason]
            self._waiting = deque(sequence for sequence in self._waiting if not sequence.finish_reason)
        for sequence in ended:
            self._free(sequence)
            sequence.status = "finished"
        return ended

    def _finish(self, sequence: Sequence, reason: FinishReason) -> None:
        (self._running if sequence.status == "running" else self._waiting).remove(sequence)
        if reason == "error":
            self._pool.unregister(sequence.block_table)
        self._free(sequence)
        sequence.finish_reason = reason
        sequence.status = "finished"

    def _fork(self, parent: Sequence) -> Sequence:
        """A new sequence of the same tokens: running if there is a place and a block for it, else waiting.

        It shares the full blocks of its parent; the last block, if it is not full, is copied before the next step. If
        it has to wait, it finds most of the blocks by their contents when it is admitted.
        """
        fork = parent.fork()
        num_full, rest = divmod(parent.num_computed_tokens, self._config.block_size)
        has_room = len(self._running) < self._config.max_num_seqs and (not rest or self._pool.num_free > 0)
        if parent.status != "running" or not has_room:
            self._enqueue(fork)
            return fork
        fork.block_table = parent.block_table[:num_full]
        for block in fork.block_table:
            self._pool.share(block)
        if rest:
            fork.block_table += self._pool.allocate(1)
            self._copies.append((parent.block_table[num_full], fork.block_table[num_full]))
        fork.num_computed_tokens = parent.num_computed_tokens
        self._run(fork)
        return fork

    def _allocate_for_running(self) -> None:
        """Give every running sequence blocks for all its known tokens; preempt the last ones if too few are free."""
        for sequence in list(self._running):
            while sequence.status == "running":
                missing = self._config.blocks_for(sequence.num_tokens) - len(sequence.block_table)
                if missing <= self._pool.num_free:
                    if missing > 0:
                        sequence.block_table += self._pool.allocate(missing, after=sequence.block_table[-1])
                    break
                self._preempt(self._running[-1])

    def _preempt(self, sequence: Sequence) -> None:
        self._running.remove(sequence)
        self._free(sequence)
        sequence.num_computed_tokens = 0
        self._enqueue(sequence)
        self.num_preemptions += 1

    def _enqueue(self, sequence: Sequence) -> None:
        """Put a sequence where it belongs among the waiting ones by its rank."""
        sequence.status = "waiting"
        behind = (place for place, other in enumerate(self._waiting) if other.rank > sequence.rank)
        self._waiting.insert(next(behind, len(self._waiting)), sequence)

    def _run(self, sequence: Sequence) -> None:
        sequence.status = "running"
        insort(self._running, sequence, key=lambda each: each.rank)

    def _admit(self, *, must: bool) -> Sequence | None:
        """Start the first waiting sequence if there are blocks for all its known tokens.

        With `must`, running sequences are preempted until it fits. This is for steps that would otherwise compute
        nothing: all running sequences are beams that wait for another beam of their search, which is not running.
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
        self._start(sequence)
        return sequence

    def _fits(self, sequence: Sequence) -> bool:
        if len(self._running) == self._config.max_num_seqs:
            return False
        found = self._find_prefix(sequence)
        num_new = self._config.blocks_for(sequence.num_tokens) - len(found)
        # One block more for each running sequence, so that the one admitted now is not preempted at once.
        spare = len(self._running)
        return num_new + spare <= self._pool.num_free - sum(map(self._pool.is_free, found))

    def _start(self, sequence: Sequence) -> None:
        """Give a sequence blocks for all its known tokens, cached ones for the prefix that is known, and run it."""
        found = self._find_prefix(sequence)
        for block in found:
            self._pool.share(block)
        num_new = self._config.blocks_for(sequence.num_tokens) - len(found)
        longest = self._config.blocks_for(sequence.num_prompt_tokens + sequence.max_output_tokens)
        sequence.block_table = found + self._pool.allocate(num_new, reserve=longest - len(found))
        sequence.num_computed_tokens = sequence.num_cached_tokens = len(found) * self._config.block_size
        sequence.admitted_at = sequence.admitted_at or time.monotonic()
        self._run(sequence)

    def _find_prefix(self, sequence: Sequence) -> list[int]:
        """The blocks of the longest known prefix that leaves the last token, whose logits are needed, to compute."""
        found: list[int] = []
        size = self._config.block_size
        if self._config.prefix_caching:
            for number in range((sequence.num_tokens - 1) // size):
                block = self._pool.find(sequence.block_key(number, size))
                if block is None:
                    break
                found.append(block)
        return found

    def _free(self, sequence: Sequence) -> None:
        self._pool.free(sequence.block_table)
        sequence.block_table = []

    def _compute(self, sequence: Sequence, budget: int) -> Chunk:
        """The next tokens of a sequence, as many as the budget allows; they count as computed from now on."""
        start = sequence.num_computed_tokens
        end = start + min(sequence.num_uncomputed_tokens, budget)
        assert start < end, "the sequence has a token to compute"
        sequence.num_computed_tokens = end
        size = self._config.block_size
        if self._config.prefix_caching:
            for number in range(start // size, end // size):
                self._pool.register(sequence.block_table[number], sequence.block_key(number, size))
        return Chunk(sequence, start, end, sampled=end == sequence.num_tokens)

    def _with_shared(self, chunk: Chunk) -> Chunk:
        num_shared = self._pool.count_shared(chunk.sequence.block_table)
        return replace(chunk, num_shared_blocks=num_shared) if num_shared else chunk

    def __repr__(self) -> str:
        running = ", ".join(map(repr, self._running)) or "none"
        waiting = ", ".join(map(repr, self._waiting)) or "none"
        return f"running {running}; waiting {waiting}"

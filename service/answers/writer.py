"""Writes what the running answers gained to the store, in order, all of it in one round trip."""

import asyncio
import time
from collections.abc import Awaitable, Callable

import structlog

from service.answers.answer import RunningAnswer
from service.errors import Unavailable
from service.store.answers import AnswerStore, AnswerWrite, OwnerVerdict

_log = structlog.get_logger(__name__)

STORE_PATIENCE = 30.0
"""Seconds that answers wait for an unreachable store before their next owner has to find them."""
STORE_RETRY = 0.25
"""Seconds between two tries."""


class AnswerWriter:
    """A queue of answers with unwritten events."""

    def __init__(
        self, answers: AnswerStore, *, on_verdict: Callable[[RunningAnswer, OwnerVerdict], Awaitable[None]]
    ) -> None:
        """`on_verdict` is awaited with the store's verdict on each answer after each write."""
        self._answers = answers
        self._on_verdict = on_verdict
        self._queue: asyncio.Queue[RunningAnswer] = asyncio.Queue()

    def add(self, answer: RunningAnswer) -> None:
        """Write what this answer has gained with the next round trip."""
        self._queue.put_nowait(answer)

    async def flush(self) -> None:
        """Wait until everything added so far is written or given up."""
        await self._queue.join()

    async def run(self) -> None:
        """Write until cancelled."""
        while True:
            taken = [await self._queue.get()]
            while not self._queue.empty():
                taken.append(self._queue.get_nowait())
            answers = {answer.owner: answer for answer in taken}
            writes = [write for answer in answers.values() if (write := answer.take_unwritten()) is not None]
            verdicts = await self._write(writes)
            for answer in answers.values():
                await self._on_verdict(answer, verdicts.get(answer.owner, OwnerVerdict.OWNED))
            for _ in taken:
                self._queue.task_done()

    async def _write(self, writes: list[AnswerWrite]) -> dict[str, OwnerVerdict]:
        """Write with retries while the store is unreachable; returns its verdict by owner."""
        give_up = time.monotonic() + STORE_PATIENCE
        while True:
            try:
                verdicts = await self._answers.write(writes)
            except Unavailable:
                if time.monotonic() > give_up:
                    _log.error("answers_given_up", num_answers=len(writes))
                    return {write.owner: OwnerVerdict.LOST for write in writes}
                await asyncio.sleep(STORE_RETRY)
            else:
                return {write.owner: verdict for write, verdict in zip(writes, verdicts, strict=True)}

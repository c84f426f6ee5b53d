"""Answers as clients see them: read, followed and cancelled at any replica, whichever one generates them."""

import asyncio
import time
from collections.abc import AsyncGenerator, Sequence

from service.answers.admission import Admission
from service.answers.presence import Presence
from service.answers.runner import AnswerRunner
from service.answers.takeover import Takeover
from service.errors import NotFound
from service.store.answers import AnswerStore
from service.store.event_log import LogEvent
from service.store.records import AnswerRecord

_IDLE = 1.0  # seconds without an event after which the state of the answer is checked
_MARK_MARGIN = 2 * _IDLE  # seconds that a reader's mark outlives the grace period
_DRAIN_POLL = 0.05


class Answers:
    """The answers of all replicas, through this one."""

    def __init__(
        self,
        *,
        runner: AnswerRunner,
        takeover: Takeover,
        presence: Presence,
        admission: Admission,
        answers: AnswerStore,
        grace: float,
    ) -> None:
        self._runner = runner
        self._takeover = takeover
        self._presence = presence
        self._admission = admission
        self._answers = answers
        self._grace = grace
        self._is_dismissed = False
        self._marked_at: dict[str, float] = {}

    async def get(self, tenant: str, answer_id: str) -> AnswerRecord:
        """Read an answer's record, and continue the answer here if it is in progress without an owner.

        Raises:
            NotFound: there is no such answer.
        """
        record = await self._answers.get(tenant, answer_id)
        if record is None:
            raise NotFound("answer_not_found", "There is no answer with this id.", param="answer_id")
        if record.status == "in_progress":
            await self._takeover.ensure_owned(tenant, answer_id)
        return record

    async def cancel(self, tenant: str, answer_id: str) -> AnswerRecord:
        """Stop an answer; its text so far is kept. An answer that has ended stays as it is.

        Raises:
            NotFound: there is no such answer.
        """
        record = await self.get(tenant, answer_id)
        if record.status == "in_progress":
            is_cancelled = self._runner.cancel(answer_id)
            if not is_cancelled:
                await self._answers.request_cancel(tenant, answer_id)  # its owner sees this when it next writes
                await self._takeover.ensure_owned(tenant, answer_id)  # without an owner, it ends here
        return record

    async def running(self, tenant: str) -> dict[str, str]:
        """Map each session that has an answer in progress to that answer's id."""
        return await self._answers.running(tenant)

    async def follow(self, tenant: str, answer_id: str, *, after: int) -> AsyncGenerator[Sequence[LogEvent], None]:
        """Yield an answer's events with a number greater than `after`, to the last one, in batches as they arrive.

        When this replica drains, the events can end without a last one; the reader goes on at another replica.

        Raises:
            NotFound: the answer was erased.
        """
        with self._presence.reading(answer_id):
            async with self._answers.follow(tenant, answer_id, after=after) as log:
                while True:
                    events = await log.next(timeout=_IDLE)
                    if events:
                        yield events
                        if events[-1].name in {"done", "error"}:
                            return
                    if answer_id in self._runner:
                        continue
                    if self._is_dismissed:
                        return
                    await self._mark_read(tenant, answer_id)
                    if not events and (await self.get(tenant, answer_id)).status != "in_progress":
                        break
                if events := await log.next(timeout=0):  # delivered since
                    yield events
            # The answer has ended, but the shared reading may not have delivered its last events yet.
            while events := await self._answers.read(tenant, answer_id, after=log.last_number):
                yield events
                log.last_number = events[-1].number

    async def _mark_read(self, tenant: str, answer_id: str) -> None:
        """Tell the answer's owner, another replica, that it has readers here, at most once in `_IDLE` seconds."""
        now = time.monotonic()
        if self._marked_at.get(answer_id, -_IDLE) > now - _IDLE:
            return
        self._marked_at = {marked: at for marked, at in self._marked_at.items() if at > now - _IDLE}
        self._marked_at[answer_id] = now
        await self._answers.mark_followed(tenant, answer_id, seconds=self._grace + _MARK_MARGIN)

    # -- the end of the replica

    async def drain(self, *, patience: float, hurry: asyncio.Event) -> None:
        """Stop taking over answers, wait for running answers and their readers, and hand over those that still run.

        It waits at most `patience` seconds, and no longer once `hurry` is set.
        """
        self._takeover.stop()
        give_up = time.monotonic() + patience
        while self._has_clients and time.monotonic() < give_up and not hurry.is_set():  # noqa: ASYNC110
            await asyncio.sleep(_DRAIN_POLL)
        await self._runner.hand_over()

    @property
    def _has_clients(self) -> bool:
        return self._admission.num_answers > 0 or self._presence.num_readers > 0

    def dismiss_readers(self) -> None:
        """End the streams of answers that other replicas generate; their readers go on there."""
        self._is_dismissed = True

    async def close(self) -> None:
        """Leave every running answer to other replicas, or to the next start, and stop."""
        self.dismiss_readers()
        await self._takeover.close()
        await self._runner.close()

"""Presence: counts the readers of each answer, and stops an answer that has had none for the grace period."""

import asyncio
import contextlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from service.errors import ServiceError
from service.store.answers import AnswerStore


@dataclass(slots=True, eq=False)
class _Watch:
    """One answer of this replica, and the timer that runs while it has no reader."""

    tenant: str
    on_abandoned: Callable[[], None]
    timer: "asyncio.Task[None] | None" = None


class Presence:
    """The readers of one replica."""

    def __init__(self, answers: AnswerStore, *, grace: float) -> None:
        self._answers = answers
        self._grace = grace
        self._num_readers: Counter[str] = Counter()
        self._watches: dict[str, _Watch] = {}

    @property
    def num_readers(self) -> int:
        """Readers at this replica, of answers that run here or elsewhere."""
        return self._num_readers.total()

    @contextlib.contextmanager
    def reading(self, answer_id: str) -> Iterator[None]:
        """Count one reader of an answer while the block runs."""
        self._num_readers[answer_id] += 1
        self._stop_timer(self._watches.get(answer_id))  # the next reader to leave starts a whole grace period
        try:
            yield
        finally:
            self._num_readers[answer_id] -= 1
            if not self._num_readers[answer_id]:
                del self._num_readers[answer_id]
                self._start_timer(answer_id, self._grace)

    def watch(self, tenant: str, answer_id: str, *, first_grace: float, on_abandoned: Callable[[], None]) -> None:
        """Call `on_abandoned` once no replica has had a reader of the answer for the grace period.

        `first_grace` is the time until the first reader must arrive, in seconds.
        """
        self._watches[answer_id] = _Watch(tenant, on_abandoned)
        self._start_timer(answer_id, first_grace)

    def unwatch(self, answer_id: str) -> None:
        """Forget an answer. Its readers stay counted."""
        self._stop_timer(self._watches.pop(answer_id, None))

    def _start_timer(self, answer_id: str, grace: float) -> None:
        watch = self._watches.get(answer_id)
        if watch is not None and watch.timer is None and not self._num_readers[answer_id]:
            watch.timer = asyncio.create_task(self._abandon(answer_id, watch, grace))

    @staticmethod
    def _stop_timer(watch: _Watch | None) -> None:
        if watch is not None and watch.timer is not None:
            watch.timer.cancel()
            watch.timer = None

    async def _abandon(self, answer_id: str, watch: _Watch, grace: float) -> None:
        await asyncio.sleep(grace)
        with contextlib.suppress(ServiceError):
            while seconds := await self._answers.followed_for(watch.tenant, answer_id):  # noqa: ASYNC110  set elsewhere
                await asyncio.sleep(seconds)
        watch.timer = None
        watch.on_abandoned()

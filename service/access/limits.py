"""The limit on a key's concurrent answers, counted across replicas."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence

from service.access.callers import Caller
from service.errors import LimitExceeded, Unavailable
from service.observability.metrics import Metrics
from service.store.api_keys import ApiKeyStore

_RENEW_INTERVAL = 15.0
"""Seconds between two renewals of answers without a record; the store stops counting them after a minute."""


class ConcurrencyLimit:
    """Counts the answers that each key has running or waiting. Callers without the limit cost no round trip."""

    def __init__(self, keys: ApiKeyStore, *, metrics: Metrics) -> None:
        self._keys = keys
        self._metrics = metrics
        self._background: set[asyncio.Task[None]] = set()

    @contextlib.asynccontextmanager
    async def count_answer(self, caller: Caller, answer_id: str) -> AsyncIterator[None]:
        """Count an answer that is accepted, and its record stored, within the block.

        After the block, the record's status decides how long the answer counts. An answer whose block raises does
        not count. Entering takes one round trip, leaving none that the caller waits for.

        Raises:
            LimitExceeded: the key has as many answers running or waiting as it may.
        """
        key_id = await self._start(caller, [answer_id])
        if key_id is None:
            yield
            return
        try:
            yield
        except BaseException:
            await asyncio.shield(self._keys.end_answers(key_id, [answer_id]))
            raise
        marking = asyncio.create_task(self._mark_recorded(key_id, answer_id))
        self._background.add(marking)
        marking.add_done_callback(self._background.discard)

    @contextlib.asynccontextmanager
    async def count_answers_until_exit(self, caller: Caller, answer_ids: Sequence[str]) -> AsyncIterator[None]:
        """Count answers that have no record until the block ends. Either all of them are counted, or none.

        Raises:
            LimitExceeded: the key would have more answers running or waiting than it may.
        """
        key_id = await self._start(caller, answer_ids)
        if key_id is None:
            yield
            return
        renewing = asyncio.create_task(self._renew(key_id, answer_ids))
        try:
            yield
        finally:
            renewing.cancel()
            await asyncio.shield(self._keys.end_answers(key_id, answer_ids))

    async def _start(self, caller: Caller, answer_ids: Sequence[str]) -> str | None:
        """Count the answers; returns the key that they count for, None if it has no limit."""
        limit = caller.limits.concurrent_answers
        if caller.key_id is None or limit is None:
            return None
        if not await self._keys.start_answers(caller.tenant, caller.key_id, answer_ids, limit=limit):
            self._metrics.admission_rejections.labels("concurrent_answers").inc()
            raise LimitExceeded("too_many_answers", f"This key may have {limit} answers running or waiting.")
        return caller.key_id

    async def _mark_recorded(self, key_id: str, answer_id: str) -> None:
        with contextlib.suppress(Unavailable):  # then it counts for a minute if its record is erased
            await self._keys.mark_recorded(key_id, answer_id)

    async def _renew(self, key_id: str, answer_ids: Sequence[str]) -> None:
        while True:
            await asyncio.sleep(_RENEW_INTERVAL)
            with contextlib.suppress(Unavailable):  # the next renewal may succeed in time
                await self._keys.renew_answers(key_id, answer_ids)

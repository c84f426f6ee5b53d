"""The bytes a tenant may keep: set aside at all replicas while a file comes in, and taken by its record."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass

from service.access.callers import Caller
from service.errors import LimitExceeded, Unavailable
from service.ids import new_id
from service.observability.metrics import Metrics
from service.store.videos import VideoStore

_SECONDS = 60  # for which bytes are reserved; so long after a process died they are free again
_RENEWAL = 15.0  # seconds between two signs of life of a reservation


@dataclass(frozen=True, slots=True)
class Reservation:
    """Bytes set aside for a file that is coming in, under a name, until so long after the last sign of life."""

    name: str
    seconds: int


class Quota:
    """Reservations of a key's `stored_bytes`; a caller without such a limit needs none, and gets all."""

    def __init__(self, videos: VideoStore, metrics: Metrics) -> None:
        self._videos = videos
        self._metrics = metrics

    async def reserve(self, caller: Caller, room: Reservation, num_bytes: int) -> None:
        """Set bytes aside; or so many instead of those before.

        Raises:
            LimitExceeded: erasing videos makes room.
        """
        limit = caller.limits.stored_bytes
        if limit is not None and not await self._videos.reserve(
            caller.tenant, room.name, num_bytes, limit=limit, seconds=room.seconds
        ):
            self._metrics.admission_rejections.labels("stored_bytes").inc()
            raise LimitExceeded(
                "storage_full", f"With this upload more than {limit} bytes would be stored; erase videos first."
            )

    async def prolong(self, tenant: str, room: Reservation) -> None:
        """Give a sign of life of a reservation."""
        await self._videos.prolong(tenant, room.name, seconds=room.seconds)

    async def release(self, tenant: str, room: Reservation) -> None:
        """Give reserved bytes back, if a record has not taken their place. Nothing happens while the store is away."""
        with contextlib.suppress(Unavailable):  # they run out by themselves
            await self._videos.release(tenant, room.name)

    @contextlib.asynccontextmanager
    async def hold(self, caller: Caller, num_bytes: int | None) -> AsyncIterator[Reservation]:
        """A reservation that lasts as long as the block; with None, its bytes are still to be reserved."""
        room = Reservation(new_id("req"), _SECONDS)
        if caller.limits.stored_bytes is None:
            yield room
            return
        if num_bytes is not None:
            await self.reserve(caller, room, num_bytes)
        staying = asyncio.create_task(self._stay(caller.tenant, room))
        try:
            yield room
        finally:
            staying.cancel()
            await asyncio.shield(self.release(caller.tenant, room))

    async def _stay(self, tenant: str, room: Reservation) -> None:
        while True:
            await asyncio.sleep(_RENEWAL)
            with contextlib.suppress(Unavailable):  # the next one may be in time
                await self.prolong(tenant, room)

"""The stored bytes of a tenant: reserved at all replicas while a file is received, then counted by its record."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass

from service.access.callers import Caller
from service.errors import LimitExceeded, Unavailable
from service.ids import new_id
from service.observability.metrics import Metrics
from service.store.videos import VideoStore

_LIFETIME = 60  # seconds of a reservation; that long after a process dies, its bytes are free again
_RENEWAL_INTERVAL = 15.0  # seconds between two renewals of a reservation


@dataclass(frozen=True, slots=True)
class Reservation:
    """Bytes that are reserved under a name for a file that is being received."""

    name: str
    seconds: int
    """How long they stay reserved after the last renewal."""


class Quota:
    """Reserves bytes within a key's `stored_bytes`. A caller without this limit can always store."""

    def __init__(self, videos: VideoStore, metrics: Metrics) -> None:
        self._videos = videos
        self._metrics = metrics

    async def reserve(self, caller: Caller, reservation: Reservation, num_bytes: int) -> None:
        """Reserve bytes; they replace those that the reservation had before.

        Raises:
            LimitExceeded: the tenant would store more than the limit.
        """
        limit = caller.limits.stored_bytes
        if limit is not None and not await self._videos.reserve(
            caller.tenant, reservation.name, num_bytes, limit=limit, seconds=reservation.seconds
        ):
            self._metrics.admission_rejections.labels("stored_bytes").inc()
            raise LimitExceeded(
                "storage_full", f"With this upload more than {limit} bytes would be stored; erase videos first."
            )

    async def renew(self, tenant: str, reservation: Reservation) -> None:
        """Extend a reservation by its lifetime.

        Raises:
            Unavailable: the store cannot be reached.
        """
        await self._videos.prolong(tenant, reservation.name, seconds=reservation.seconds)

    async def release(self, tenant: str, reservation: Reservation) -> None:
        """Release bytes that no record has taken over. If the store cannot be reached, they expire by themselves."""
        with contextlib.suppress(Unavailable):
            await self._videos.release(tenant, reservation.name)

    @contextlib.asynccontextmanager
    async def reserving(self, caller: Caller, num_bytes: int | None) -> AsyncIterator[Reservation]:
        """Keep a reservation through the block; with None the block itself must reserve the bytes.

        Raises:
            LimitExceeded: the tenant would store more than the limit.
        """
        reservation = Reservation(new_id("req"), _LIFETIME)
        if caller.limits.stored_bytes is None:
            yield reservation
            return
        if num_bytes is not None:
            await self.reserve(caller, reservation, num_bytes)
        renewal = asyncio.create_task(self._renew_forever(caller.tenant, reservation))
        try:
            yield reservation
        finally:
            renewal.cancel()
            await asyncio.shield(self.release(caller.tenant, reservation))

    async def _renew_forever(self, tenant: str, reservation: Reservation) -> None:
        while True:
            await asyncio.sleep(_RENEWAL_INTERVAL)
            with contextlib.suppress(Unavailable):  # the next renewal may be in time
                await self.renew(tenant, reservation)

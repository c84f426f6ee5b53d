"""Leases: who does a thing, for how long, so that exactly one does it and its death is noticed."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

from service.errors import Unavailable
from service.store.connection import StoreClient, text

_RELEASE = "if redis.call('get', KEYS[1]) == ARGV[1] then return redis.call('del', KEYS[1]) else return 0 end"
_RENEW = (
    "if redis.call('get', KEYS[1]) == ARGV[1] then return redis.call('pexpire', KEYS[1], ARGV[2]) else return 0 end"
)


class Leases:
    """Leases that run out `seconds` after their holder's last sign of life."""

    def __init__(self, redis: StoreClient, *, seconds: float) -> None:
        self._redis = redis
        self.seconds = seconds

    async def acquire(self, key: str, holder: str) -> bool:
        """Take the lease unless somebody has it."""
        return bool(await self._redis.set(key, holder, nx=True, px=int(self.seconds * 1000)))

    async def renew(self, key: str, holder: str) -> bool:
        """Prolong the lease; false when it is no longer the holder's."""
        return bool(await self._redis.eval(_RENEW, 1, key, holder, str(int(self.seconds * 1000))))

    async def release(self, key: str, holder: str) -> bool:
        """Give the lease back, if it is still the holder's."""
        return bool(await self._redis.eval(_RELEASE, 1, key, holder))

    async def holder(self, key: str) -> str | None:
        """Who has the lease now."""
        value = await self._redis.get(key)
        return text(value) if value else None

    @contextlib.asynccontextmanager
    async def hold(self, key: str, holder: str) -> AsyncIterator[bool]:
        """Try to take the lease and keep it alive through the block; yields whether it was taken."""
        if not await self.acquire(key, holder):
            yield False
            return
        heartbeat = asyncio.create_task(self._beat(key, holder))
        try:
            yield True
        finally:
            heartbeat.cancel()
            with contextlib.suppress(Unavailable):  # it runs out by itself
                await self.release(key, holder)

    async def _beat(self, key: str, holder: str) -> None:
        while True:
            await asyncio.sleep(self.seconds / 3)
            with contextlib.suppress(Unavailable):
                await self.renew(key, holder)

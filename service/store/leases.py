"""Leases: locks that expire, so that one holder does a task and another can take over if that holder dies."""

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
    """Leases that expire `seconds` after they were last renewed."""

    def __init__(self, redis: StoreClient, *, seconds: float) -> None:
        self._redis = redis
        self.seconds = seconds

    async def acquire(self, key: str, holder: str) -> bool:
        """Take the lease; false if it has a holder."""
        return bool(await self._redis.set(key, holder, nx=True, px=int(self.seconds * 1000)))

    async def renew(self, key: str, holder: str) -> bool:
        """Extend the lease; false if `holder` no longer holds it."""
        return bool(await self._redis.eval(_RENEW, 1, key, holder, str(int(self.seconds * 1000))))

    async def release(self, key: str, holder: str) -> bool:
        """End the lease; false if `holder` no longer holds it."""
        return bool(await self._redis.eval(_RELEASE, 1, key, holder))

    async def holder(self, key: str) -> str | None:
        """The current holder; None if the lease is free."""
        value = await self._redis.get(key)
        return text(value) if value else None

    @contextlib.asynccontextmanager
    async def hold(self, key: str, holder: str) -> AsyncIterator[bool]:
        """Try to take the lease and renew it until the block ends; yields whether it was taken."""
        if not await self.acquire(key, holder):
            yield False
            return
        renewal = asyncio.create_task(self._keep_renewing(key, holder))
        try:
            yield True
        finally:
            renewal.cancel()
            with contextlib.suppress(Unavailable):  # the lease expires by itself
                await self.release(key, holder)

    async def _keep_renewing(self, key: str, holder: str) -> None:
        while True:
            await asyncio.sleep(self.seconds / 3)
            with contextlib.suppress(Unavailable):
                await self.renew(key, holder)

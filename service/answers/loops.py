"""Background loops that must survive their own errors, because every answer depends on them."""

import asyncio
from collections.abc import Callable, Coroutine

import structlog

_log = structlog.get_logger(__name__)
_RESTART_SECONDS = 0.25


class Loops:
    """Background tasks of one object; each is restarted if it raises."""

    def __init__(self) -> None:
        self._tasks: list[asyncio.Task[None]] = []

    def start(self, *loops: Callable[[], Coroutine[None, None, None]]) -> None:
        """Run loops until `close`."""
        self._tasks += [asyncio.create_task(_restarting(loop)) for loop in loops]

    async def close(self) -> None:
        """Cancel all loops and wait for their end."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


async def _restarting(loop: Callable[[], Coroutine[None, None, None]]) -> None:
    while True:
        try:
            await loop()
        except Exception:  # noqa: BLE001  an error in one answer must not stop all others
            _log.exception("loop_failed", loop=loop.__name__)
            await asyncio.sleep(_RESTART_SECONDS)

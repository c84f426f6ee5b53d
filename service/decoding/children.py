"""The decode children of a replica: one spare is always ready, each decodes one upload, and all are reaped.

Importing its libraries takes a child 0.3 to 0.65 s, so the next child is started before it is needed.
"""

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager, suppress

from service.decoding.child_process import ChildProcess

RESTART_DELAY = 1.0
"""Seconds between the death of a spare child and the start of the next one: where children die at once, few start."""


class NoChild(Exception):
    """No decode child can be used; the message gives the reason."""


class Children:
    """Starts decode children, keeps a spare one, and kills and reaps every one that was started."""

    def __init__(self) -> None:
        self._spare: ChildProcess | None = None
        self._running: set[ChildProcess] = set()
        self._all_reaped = asyncio.Event()
        self._all_reaped.set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._closed = asyncio.Event()

    async def start(self) -> None:
        """Start the first spare child.

        Raises:
            NoChild: the operating system starts no process.
        """
        self._keep(await self._start_child())

    async def close(self) -> None:
        """Kill and reap every child. A decode in progress fails."""
        self._closed.set()
        for child in self._running:
            child.kill()  # the decode that uses it sees it exit, and reaps it
        spare, self._spare = self._spare, None
        if spare is not None:
            await self._end(spare)
        while self._tasks:
            await asyncio.wait(self._tasks)
        await self._all_reaped.wait()

    @asynccontextmanager
    async def child(self) -> AsyncIterator[ChildProcess]:
        """Take a child for one decode: the spare one, or a new one. It is killed and reaped at the end of the block.

        The next spare child is started at once.

        Raises:
            NoChild: the operating system starts no process, or the service is shutting down.
        """
        child = await self._take()
        try:
            yield child
        finally:
            await self._end(child)

    async def _take(self) -> ChildProcess:
        child, self._spare = self._spare, None
        if child is not None and child.returncode is not None:  # it died while it waited
            await self._end(child)
            child = None
        self._in_background(self._start_spare())
        child = child or await self._start_child()
        if self._closed.is_set():
            await self._end(child)
            raise NoChild("The service is shutting down.")
        return child

    async def _start_spare(self) -> None:
        with suppress(NoChild):  # the decode that finds no spare child tries again and reports the error
            child = await self._start_child()
            if self._closed.is_set() or self._spare is not None:
                await self._end(child)
            else:
                self._keep(child)

    def _keep(self, child: ChildProcess) -> None:
        self._spare = child
        self._in_background(self._replace_when_dead(child))

    async def _replace_when_dead(self, child: ChildProcess) -> None:
        """Replace a spare child that dies; does nothing about a child that a decode has taken meanwhile."""
        await child.wait()
        if self._spare is not child:
            return
        self._spare = None
        await self._end(child)
        with suppress(TimeoutError):
            await asyncio.wait_for(self._closed.wait(), RESTART_DELAY)
        if not self._closed.is_set() and self._spare is None:
            await self._start_spare()

    async def _start_child(self) -> ChildProcess:
        try:
            child = await ChildProcess.start()
        except OSError:
            raise NoChild("No process could be started to decode the video; try again in a moment.") from None
        self._running.add(child)
        self._all_reaped.clear()
        return child

    async def _end(self, child: ChildProcess) -> None:
        """Kill the child's process group at once, and reap the child even if the caller is cancelled meanwhile."""
        child.kill()
        await asyncio.shield(self._in_background(self._reap(child)))

    async def _reap(self, child: ChildProcess) -> None:
        await child.reap()
        self._running.discard(child)
        if not self._running:
            self._all_reaped.set()

    def _in_background(self, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

"""Following event logs: one blocking read per replica, with its events handed to all followers in memory.

A follower first reads what the log already contains, page by page over the command pool. Once it has caught up it
attaches to the shared reading: one XREAD over all followed logs, on a connection of its own. Followers receive only
what is in the log.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import structlog

from service.errors import Unavailable
from service.store.connection import StoreClient, has_timed_out, store_unavailable, text
from service.store.event_log import PAGE_SIZE, EventLog, LogEvent, event_of

_log = structlog.get_logger(__name__)

_BLOCK = 1.0  # seconds that one XREAD waits; less than the client's timeout for a reply
_PAUSE_PER_LOG = 2e-5  # seconds between two XREADs for each followed log; an XREAD over many logs is expensive
_BUFFER_SIZE = 1024  # events that wait in memory for one follower
_UNBLOCK_INTERVAL = 0.005  # seconds between two CLIENT UNBLOCK; also bundles followers that arrive together
_UNBLOCK_RETRY = 0.25
_RECONNECT = 0.05  # seconds before the first reconnection; doubled after each further failure
_MAX_RECONNECT = 2.0
_CANCEL_INTERVAL = 0.1


class LogFollower:
    """Reads all logs that are followed on this replica, over one connection."""

    def __init__(self, redis: StoreClient) -> None:
        self._redis = redis
        self._log = EventLog(redis)
        self._shared = _SharedReading()
        self._num_failures = 0
        self._blocked_client: int | None = None  # the id of the reading connection while its XREAD is under way
        self._must_unblock = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Start to read."""
        self._tasks = [
            asyncio.create_task(self._run(), name="read followed logs"),
            asyncio.create_task(self._unblock(), name="unblock the reading of logs"),
        ]

    async def close(self) -> None:
        """Stop to read; `next` of logs that are still followed raises `Unavailable`."""
        running = {task for task in self._tasks if not task.done()}
        while running:  # repeated, because `asyncio.wait_for` of Python 3.11, in redis-py, can swallow a cancellation
            for task in running:
                task.cancel()
            _, running = await asyncio.wait(running, timeout=_CANCEL_INTERVAL)
        self._shared.fail()

    @contextlib.asynccontextmanager
    async def follow(self, key: str, *, after: int) -> AsyncIterator["FollowedLog"]:
        """Follow the log at `key` from the first event with a number greater than `after`."""
        followed = FollowedLog(self, key, after=after)
        try:
            yield followed
        finally:
            self._shared.detach(followed)

    async def catch_up(self, followed: "FollowedLog") -> list[LogEvent]:
        """Read one page for a log that is not attached; if there is nothing left to read, attach it.

        Raises:
            Unavailable: the store cannot be reached.
        """
        if not followed.has_caught_up or self._shared.position(followed.key) - followed.last_number > PAGE_SIZE:
            page = await self._log.read(followed.key, after=followed.last_number)
            followed.has_caught_up = len(page) < PAGE_SIZE
            if page:
                return page
        # No `await` from the check to here: an event that was appended since is read by the next XREAD.
        if self._shared.attach(followed) and self._blocked_client is not None:
            self._must_unblock.set()
        return []

    # -- the shared reading

    async def _run(self) -> None:
        """Read until closed; reconnect after failures, and fail the followers if a reconnection fails too."""
        while True:
            await self._shared.is_followed.wait()
            try:
                async with contextlib.aclosing(self._redis.dedicated()) as client:
                    await self._read(client)
            except Unavailable as error:
                self._num_failures += 1
                if self._num_failures > 1 or has_timed_out(error):
                    self._shared.fail()
            except Exception:  # noqa: BLE001  a mistake here must not stop all streams of this replica
                _log.exception("log_reading_failed")
                self._num_failures += 1
                self._shared.fail()
            await asyncio.sleep(min(_MAX_RECONNECT, _RECONNECT * 2 ** min(self._num_failures - 1, 16)))

    async def _read(self, client: StoreClient) -> None:
        client_id = int(await client.client_id())
        while True:
            await self._shared.is_followed.wait()
            positions = self._shared.positions()
            self._blocked_client = client_id  # no `await` since `positions`: a later follower unblocks this XREAD
            try:
                reply: Any = await client.xread(
                    {key: f"{position}-0" for key, position in positions.items()},
                    count=PAGE_SIZE,
                    block=int(_BLOCK * 1000),
                )
            finally:
                self._blocked_client = None
                self._must_unblock.clear()
            self._num_failures = 0
            for key, entries in reply or ():
                name = text(key)
                events = [event_of(entry, fields) for entry, fields in entries]
                self._shared.deliver(name, events, read_after=positions[name])
            await asyncio.sleep(_PAUSE_PER_LOG * len(positions))

    async def _unblock(self) -> None:
        """End the XREAD under way when it does not read a newly followed log.

        The command may overtake the XREAD on its way to the server and then does nothing, so it is repeated until the
        XREAD has returned.
        """
        while True:
            await self._must_unblock.wait()
            try:
                if self._blocked_client is not None:
                    await self._redis.client_unblock(self._blocked_client)
            except Unavailable:  # the XREAD ends by itself after `_BLOCK` seconds
                await asyncio.sleep(_UNBLOCK_RETRY)
            else:
                await asyncio.sleep(_UNBLOCK_INTERVAL)


class FollowedLog:
    """One follower's view of a log: its own position, and the events that wait for it."""

    def __init__(self, follower: LogFollower, key: str, *, after: int) -> None:
        self.key = key
        self.last_number = after
        """The number of the last event that was returned or is buffered."""
        self.has_caught_up = False
        """Whether the last page of the log has been read."""
        self.is_attached = False
        """Whether the shared reading delivers this log's events here."""
        self._follower = follower
        self._buffer: list[LogEvent] = []
        self._has_failed = False
        self._changed = asyncio.Event()

    async def next(self, *, timeout: float) -> list[LogEvent]:
        """The events after the last ones that were returned: in order, none missing, none twice.

        Waits up to `timeout` seconds for the first of them, and returns an empty list if none came. The log may contain
        newer events by then: to know that there are none, read the log.

        Raises:
            Unavailable: the store cannot be reached. The next call continues after the last event that was returned.
        """
        deadline = asyncio.get_running_loop().time() + timeout
        while not self._buffer:
            if self._has_failed:
                self._has_failed = False
                raise store_unavailable()
            if not self.is_attached and (page := await self._follower.catch_up(self)):
                self.last_number = page[-1].number
                return page
            self._changed.clear()
            try:
                async with asyncio.timeout_at(deadline):
                    await self._changed.wait()
            except TimeoutError:
                break
        events, self._buffer = self._buffer, []
        return events

    def deliver(self, events: list[LogEvent]) -> bool:
        """Buffer the events that are new; false if there are too many, and then the buffer is dropped instead."""
        new = events if events[0].number > self.last_number else [e for e in events if e.number > self.last_number]
        if not new:
            return True
        self._changed.set()
        if len(self._buffer) + len(new) > _BUFFER_SIZE:
            self.last_number = self._buffer[0].number - 1 if self._buffer else self.last_number
            self._buffer = []
            return False
        self._buffer += new
        self.last_number = new[-1].number
        return True

    def fail(self) -> None:
        """Let `next` raise `Unavailable` once the buffered events are returned."""
        self._has_failed = True
        self._changed.set()


@dataclass(slots=True)
class _AttachedLog:
    position: int
    """The number after which the next XREAD reads; no attached follower lacks an event up to this one."""
    followers: set[FollowedLog] = field(default_factory=set)


class _SharedReading:
    """Which logs are read, from where, and for which followers. No I/O."""

    def __init__(self) -> None:
        self._logs: dict[str, _AttachedLog] = {}
        self.is_followed = asyncio.Event()
        """Set while there is any log to read."""

    def position(self, key: str) -> int:
        """The number after which a log is read; 0 if it is not read."""
        log = self._logs.get(key)
        return 0 if log is None else log.position

    def positions(self) -> Mapping[str, int]:
        """The logs to read, and the number after which each is read."""
        return {key: log.position for key, log in self._logs.items()}

    def attach(self, followed: FollowedLog) -> bool:
        """Deliver a log's events to a follower from now on.

        Returns:
            Whether an XREAD under way lacks events that the follower needs.
        """
        log = self._logs.get(followed.key)
        is_lacking = log is None or followed.last_number < log.position
        if log is None:
            log = self._logs[followed.key] = _AttachedLog(followed.last_number)
        log.position = min(log.position, followed.last_number)
        log.followers.add(followed)
        followed.is_attached = True
        self.is_followed.set()
        return is_lacking

    def detach(self, followed: FollowedLog) -> None:
        """Stop delivering events to a follower."""
        if not followed.is_attached:
            return
        followed.is_attached = followed.has_caught_up = False
        log = self._logs[followed.key]
        log.followers.remove(followed)
        if not log.followers:
            del self._logs[followed.key]
        if not self._logs:
            self.is_followed.clear()

    def deliver(self, key: str, events: list[LogEvent], *, read_after: int) -> None:
        """Hand events that were read after number `read_after` to the log's followers.

        If a follower has attached meanwhile that lacks earlier events, they are left to the next XREAD.
        """
        log = self._logs.get(key)
        if log is None or log.position < read_after:
            return
        for followed in list(log.followers):
            if not followed.deliver(events):
                self.detach(followed)
        log.position = max(log.position, events[-1].number)

    def fail(self) -> None:
        """Detach all followers; each continues from the log when it calls `next` again."""
        for log in list(self._logs.values()):
            for followed in list(log.followers):
                self.detach(followed)
                followed.fail()

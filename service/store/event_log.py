"""Event logs: the numbered events of one answer or video, in a Redis stream that every replica can read.

Event n is the stream's entry `n-0`. The writer chooses the numbers, so that it can repeat a write whose reply was lost:
Redis refuses an entry that is already in the stream.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from service.store.connection import StoreClient

PAGE_SIZE = 512
"""Events that one read returns at most."""

_ALREADY_THERE = "equal or smaller than the target stream top item"
_APPEND = """
if KEYS[2] and redis.call('exists', KEYS[2]) == 0 then return 0 end
local added = redis.pcall('xadd', KEYS[1], ARGV[1], 'name', ARGV[2], 'data', ARGV[3])
if type(added) == 'table' and added.err and not string.find(added.err, ARGV[5], 1, true) then return added end
if tonumber(ARGV[4]) > 0 then redis.call('expire', KEYS[1], ARGV[4]) end
return 1
"""


@dataclass(frozen=True, slots=True)
class LogEvent:
    """One event; `number` counts from 1 and is the `id:` of its SSE form.

    `token_ids` are the tokens of an answer between the previous event and this one. They are never sent to clients: a
    replica that takes the answer over continues exactly after them.
    """

    number: int
    name: str
    data: Mapping[str, Any]
    token_ids: tuple[int, ...] = ()


class EventLog:
    """Appends to and reads from logs; a log is named by its key."""

    def __init__(self, redis: StoreClient, *, ttl: int | None = None) -> None:
        self._redis = redis
        self._ttl = ttl

    async def append(self, key: str, event: LogEvent, *, record: str | None = None) -> None:
        """Append one event; does nothing if the log already has an event with this number.

        `record` is the key of the record that the log belongs to: if that was erased, nothing is appended.
        """
        names = [key] if record is None else [key, record]
        values = f"{event.number}-0", event.name, orjson.dumps(event.data), self._ttl or 0, _ALREADY_THERE
        await self._redis.eval(_APPEND, len(names), *names, *values)

    async def read(self, key: str, *, after: int) -> list[LogEvent]:
        """The first events with a number greater than `after`, at most `PAGE_SIZE`."""
        entries: Any = await self._redis.xrange(key, min=f"{after + 1}-0", max="+", count=PAGE_SIZE)
        return [event_of(entry, fields) for entry, fields in entries]

    async def last(self, key: str) -> LogEvent | None:
        """The newest event; None if the log is empty."""
        entries: Any = await self._redis.xrevrange(key, count=1)
        return event_of(*entries[0]) if entries else None


def event_of(entry: bytes, fields: Mapping[bytes, bytes]) -> LogEvent:
    """The event in a stream entry."""
    return LogEvent(
        int(entry.split(b"-")[0]),
        fields[b"name"].decode(),
        orjson.loads(fields[b"data"]),
        tuple(orjson.loads(fields.get(b"tokens", b"[]"))),
    )

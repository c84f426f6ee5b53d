"""An event log: numbered events of one answer or one video, kept in a Redis stream, read from any replica.

Event n is the stream's entry `n-0`. The writer chooses the number, so that a write whose reply was lost can be
repeated: the second one is refused as already there.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from service.store.connection import StoreClient, StorePipeline

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

    `token_ids` never leave the house: the tokens of an answer between the event before and this one, so that whoever
    goes on with the answer begins exactly behind it.
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

    def queue(self, pipeline: StorePipeline, key: str, event: LogEvent) -> None:
        """Add the append to a pipeline, for many logs in one round trip."""
        pipeline.xadd(key, {b"name": event.name, b"data": orjson.dumps(event.data)}, id=f"{event.number}-0")

    async def append(self, key: str, event: LogEvent, *, record: str | None = None) -> None:
        """Append one event; an event with that number is there already: nothing happens.

        Nor does anything where `record`, a key, is not there any more: what was erased gets no new log.
        """
        names = [key] if record is None else [key, record]
        values = f"{event.number}-0", event.name, orjson.dumps(event.data), self._ttl or 0, _ALREADY_THERE
        await self._redis.eval(_APPEND, len(names), *names, *values)

    async def read(self, key: str, *, after: int, block: float = 0.0) -> list[LogEvent]:
        """The events with a number greater than `after`; waits up to `block` seconds for the first of them."""
        if block <= 0:
            entries: Any = await self._redis.xrange(key, min=f"{after + 1}-0", max="+", count=512)
        else:
            reply: Any = await self._redis.xread({key: f"{after}-0"}, count=512, block=int(block * 1000))
            entries = reply[0][1] if reply else []
        return [_event(entry, fields) for entry, fields in entries]

    async def last(self, key: str) -> LogEvent | None:
        """The newest event; None of an empty log."""
        entries: Any = await self._redis.xrevrange(key, count=1)
        return _event(*entries[0]) if entries else None


def _event(entry: bytes, fields: Mapping[bytes, bytes]) -> LogEvent:
    return LogEvent(
        int(entry.split(b"-")[0]),
        fields[b"name"].decode(),
        orjson.loads(fields[b"data"]),
        tuple(orjson.loads(fields.get(b"tokens", b"[]"))),
    )

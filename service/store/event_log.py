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

    async def append(self, key: str, event: LogEvent) -> None:
        """Append one event; an event with that number is there already: nothing happens."""
        async with self._redis.pipeline(transaction=False) as pipeline:
            self.queue(pipeline, key, event)
            if self._ttl is not None:
                pipeline.expire(key, self._ttl)
            results = await pipeline.execute(raise_on_error=False)
        for result in results:
            if isinstance(result, Exception) and _ALREADY_THERE not in str(result):
                raise result

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

"""A log contains each event once and in order, and a reader gets the events after its position."""

import pytest

from service.errors import Unavailable
from service.store.connection import StoreClient
from service.store.event_log import EventLog, LogEvent

KEY = "log"


def event(number: int) -> LogEvent:
    return LogEvent(number, "delta", {"text": f"wörd {number}\n"})


async def test_events_are_read_as_they_were_written_in_order(redis: StoreClient) -> None:
    log = EventLog(redis)
    for number in (1, 2, 3):
        await log.append(KEY, event(number))
    assert await log.read(KEY, after=0) == [event(1), event(2), event(3)]
    assert await log.last(KEY) == event(3)


async def test_an_append_that_is_repeated_changes_nothing(redis: StoreClient) -> None:
    log = EventLog(redis)
    for number in (1, 2, 2, 1, 3, 3):
        await log.append(KEY, event(number))
    await log.append(KEY, LogEvent(2, "delta", {"text": "another one under the same number"}))
    assert await log.read(KEY, after=0) == [event(1), event(2), event(3)]


async def test_an_append_that_the_server_refuses_raises_unavailable(redis: StoreClient) -> None:
    """For example while its memory is full or it loads its data."""
    log = EventLog(redis, ttl=60)
    await redis.config_set("maxmemory", 1)
    try:
        with pytest.raises(Unavailable):
            await log.append(KEY, event(1))
    finally:
        await redis.config_set("maxmemory", 0)
    await log.append(KEY, event(1))
    assert await log.read(KEY, after=0) == [event(1)]
    assert 0 < await redis.ttl(KEY) <= 60


async def test_a_reader_gets_only_what_it_has_not_read(redis: StoreClient) -> None:
    log = EventLog(redis)
    for number in range(1, 6):
        await log.append(KEY, event(number))
    assert [e.number for e in await log.read(KEY, after=3)] == [4, 5]
    assert await log.read(KEY, after=5) == []


async def test_a_long_log_is_read_in_pages_without_a_gap(redis: StoreClient) -> None:
    log = EventLog(redis)
    async with redis.pipeline(transaction=False) as pipeline:
        for number in range(1, 1201):
            pipeline.xadd(KEY, {"name": "delta", "data": "{}"}, id=f"{number}-0")
        await pipeline.execute()
    read: list[int] = []
    while page := await log.read(KEY, after=len(read)):
        read += [e.number for e in page]
    assert read == list(range(1, 1201))


async def test_a_log_with_a_time_to_live_expires_after_its_last_event(redis: StoreClient) -> None:
    await EventLog(redis, ttl=100).append(KEY, event(1))
    await EventLog(redis).append("kept", event(1))
    assert 90 < await redis.ttl(KEY) <= 100
    assert await redis.ttl("kept") == -1


async def test_an_empty_log_has_no_last_event(redis: StoreClient) -> None:
    assert await EventLog(redis).last(KEY) is None


async def test_without_the_store_an_append_raises_unavailable(absent_redis: StoreClient) -> None:
    with pytest.raises(Unavailable):
        await EventLog(absent_redis).append(KEY, event(1))

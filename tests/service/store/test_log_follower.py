"""Followers of logs get every event once and in order, over one connection, even when the connection is lost."""

import asyncio
import contextlib
import os
import random
import signal
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from service.errors import Unavailable
from service.store.connection import StoreClient, connect
from service.store.event_log import EventLog, LogEvent
from service.store.log_follower import FollowedLog, LogFollower
from service.store.redis_server import embedded_redis

KEY = "log"


@pytest.fixture
async def follower(redis: StoreClient) -> AsyncIterator[LogFollower]:
    async with started(redis) as follower:
        yield follower


@contextlib.asynccontextmanager
async def started(redis: StoreClient) -> AsyncIterator[LogFollower]:
    follower = LogFollower(redis)
    follower.start()
    try:
        yield follower
    finally:
        await follower.close()


def event(number: int) -> LogEvent:
    return LogEvent(number, "delta", {"text": f"word {number}"})


async def append(redis: StoreClient, key: str, first: int, last: int) -> None:
    """Append events in order, in one round trip."""
    async with redis.pipeline(transaction=False) as pipeline:
        for number in range(first, last + 1):
            pipeline.xadd(key, {"name": "delta", "data": "{}"}, id=f"{number}-0")
        await pipeline.execute()


async def numbers(followed: FollowedLog, last: int, *, pause: float = 0.0) -> list[int]:
    """The numbers of all events that `next` returns up to the event `last`."""
    read: list[int] = []
    while not read or read[-1] < last:
        events = await followed.next(timeout=10)
        assert events, f"nothing came after {read[-1:]}"
        read += [e.number for e in events]
        if pause:
            await asyncio.sleep(random.uniform(0, pause))
    return read


async def read_all(follower: LogFollower, key: str, last: int, *, after: int = 0, pause: float = 0.0) -> list[int]:
    async with follower.follow(key, after=after) as followed:
        return await numbers(followed, last, pause=pause)


async def blocked_clients(redis: StoreClient) -> list[int]:
    """The ids of the connections that wait in XREAD."""
    clients = await redis.client_list()
    return [int(client["id"]) for client in clients if client["cmd"] == "xread" and "b" in client["flags"]]


async def until_blocked(redis: StoreClient) -> int:
    while True:
        if clients := await blocked_clients(redis):
            return clients[0]
        await asyncio.sleep(0.01)


async def test_a_follower_gets_the_backlog_and_then_what_is_appended(redis: StoreClient, follower: LogFollower) -> None:
    log = EventLog(redis)
    await log.append(KEY, event(1))
    await log.append(KEY, event(2))
    async with follower.follow(KEY, after=1) as followed:
        assert await followed.next(timeout=1) == [event(2)]
        assert await followed.next(timeout=0.05) == []
        await log.append(KEY, event(3))
        assert await followed.next(timeout=1) == [event(3)]


async def test_a_waiting_follower_wakes_with_the_event(redis: StoreClient, follower: LogFollower) -> None:
    await redis.config_resetstat()
    async with follower.follow("another", after=0) as another:
        assert await another.next(timeout=0.05) == []  # an XREAD without the new log is under way
        delays = []
        for number in range(20):
            async with follower.follow(key := f"{KEY} {number}", after=0) as followed:
                waiting = asyncio.create_task(followed.next(timeout=5))
                await asyncio.sleep(0.02)
                start = time.monotonic()
                await append(redis, key, 1, 1)
                assert [e.number for e in await waiting] == [1]
                delays.append(time.monotonic() - start)
    assert sorted(delays)[10] < 0.05
    assert max(delays) < 0.5


async def test_a_follower_waits_no_longer_than_its_timeout(redis: StoreClient, follower: LogFollower) -> None:
    async with follower.follow(KEY, after=0) as followed:
        start = time.monotonic()
        assert await followed.next(timeout=0.2) == []
        assert 0.15 < time.monotonic() - start < 0.5
        assert await followed.next(timeout=0) == []


@pytest.mark.parametrize("seed", range(3))
async def test_followers_that_come_at_any_time_miss_nothing_and_get_nothing_twice(
    redis: StoreClient, follower: LogFollower, seed: int
) -> None:
    """Followers join, pause, leave and come back anywhere in logs that grow by bursts."""
    rng = random.Random(seed)
    keys, last = [f"{KEY} {number}" for number in range(4)], 1200

    async def write(key: str) -> None:
        number = 0
        while number < last:
            burst = min(rng.choice([1, 1, 2, 5, 30, 600]), last - number)
            await append(redis, key, number + 1, number + burst)
            number += burst
            await asyncio.sleep(rng.choice([0, 0, 0.001, 0.01]))

    async def read(key: str) -> list[int]:
        got: list[int] = []
        await asyncio.sleep(rng.uniform(0, 0.3))
        while not got or got[-1] < last:
            async with follower.follow(key, after=got[-1] if got else 0) as followed:
                for _ in range(rng.randint(1, 40)):
                    got += [e.number for e in await followed.next(timeout=rng.choice([0, 0.01, 0.3]))]
                    await asyncio.sleep(rng.choice([0, 0, 0.001, 0.05]))
        return got

    async with asyncio.timeout(60):
        _, *read_by_each = await asyncio.gather(
            asyncio.gather(*(write(key) for key in keys)), *(read(key) for key in keys for _ in range(8))
        )
    assert all(read == list(range(1, last + 1)) for read in read_by_each)


async def test_a_slow_follower_holds_few_events_and_gets_all(redis: StoreClient, follower: LogFollower) -> None:
    async with follower.follow(KEY, after=0) as slow, follower.follow(KEY, after=0) as quick:
        assert await slow.next(timeout=0.05) == []
        for first in range(1, 5001, 100):
            await append(redis, KEY, first, first + 99)
            assert await numbers(quick, first + 99) == list(range(first, first + 100))
        assert await numbers(slow, 5000) == list(range(1, 5001))


async def test_three_hundred_followers_share_one_connection(redis: StoreClient, follower: LogFollower) -> None:
    async with asyncio.timeout(60):
        reading = [asyncio.create_task(read_all(follower, f"{KEY} {number % 150}", 50)) for number in range(300)]
        for number in range(1, 51):
            async with redis.pipeline(transaction=False) as pipeline:
                for key in range(150):
                    pipeline.xadd(f"{KEY} {key}", {"name": "delta", "data": "{}"}, id=f"{number}-0")
                await pipeline.execute()
            info = await redis.info("clients")
            assert info["connected_clients"] <= 17
            assert len(await blocked_clients(redis)) <= 1
        assert all(read == list(range(1, 51)) for read in await asyncio.gather(*reading))


async def test_idle_followers_cause_one_xread_per_second(redis: StoreClient, follower: LogFollower) -> None:
    async with contextlib.AsyncExitStack() as stack:
        logs = [await stack.enter_async_context(follower.follow(f"{KEY} {number}", after=0)) for number in range(50)]
        await asyncio.gather(*(log.next(timeout=0.1) for log in logs))
        await redis.config_resetstat()
        assert await asyncio.gather(*(log.next(timeout=1.5) for log in logs)) == [[]] * 50
        commands = await redis.info("commandstats")
        assert set(commands) - {"cmdstat_config"} <= {"cmdstat_xread"}
        assert commands["cmdstat_xread"]["calls"] <= 3


async def test_cancelled_followers_leave_no_task_and_no_reading(redis: StoreClient, follower: LogFollower) -> None:
    tasks_before = len(asyncio.all_tasks())
    reading = [asyncio.create_task(read_all(follower, f"{KEY} {number}", 9)) for number in range(20)]
    await until_blocked(redis)
    for task in reading:
        task.cancel()
    await asyncio.gather(*reading, return_exceptions=True)
    await append(redis, f"{KEY} 0", 1, 1)
    await asyncio.sleep(1.5)  # longer than one XREAD waits
    assert await blocked_clients(redis) == [], "nothing is followed, so nothing is read"
    assert len(asyncio.all_tasks()) == tasks_before
    await append(redis, f"{KEY} 0", 2, 9)
    assert await read_all(follower, f"{KEY} 0", 9) == list(range(1, 10))


async def test_a_killed_reading_connection_is_replaced_without_a_gap(redis: StoreClient, follower: LogFollower) -> None:
    reading = [asyncio.create_task(read_all(follower, KEY, 300)) for _ in range(10)]
    for number in range(1, 301):
        await append(redis, KEY, number, number)
        if number % 60 == 30:
            await redis.client_kill_filter(_id=str(await until_blocked(redis)))
            await asyncio.sleep(0.3)
    assert all(read == list(range(1, 301)) for read in await asyncio.gather(*reading))


async def test_while_the_store_is_away_next_raises_and_afterwards_nothing_is_missing(tmp_path: Path) -> None:
    with embedded_redis(tmp_path) as url:
        redis = connect(url)
        async with started(redis) as follower, follower.follow(KEY, after=0) as followed:
            await append(redis, KEY, 1, 2)
            assert await numbers(followed, 2) == [1, 2]
            waiting = asyncio.create_task(followed.next(timeout=10))
            await until_blocked(redis)
            server = int((await redis.info("server"))["process_id"])
            start = time.monotonic()
            os.kill(server, signal.SIGKILL)
            with pytest.raises(Unavailable) as failure:
                await waiting
            assert failure.value.code == "store_unavailable"
            assert time.monotonic() - start < 2
            async with asyncio.timeout(10):
                while True:
                    with contextlib.suppress(Unavailable):
                        await append(redis, KEY, 3, 4)
                        break
                    await asyncio.sleep(0.05)
            assert await numbers(followed, 4) == [3, 4]
        await redis.aclose()


async def test_next_raises_when_the_store_hangs(tmp_path: Path) -> None:
    with embedded_redis(tmp_path) as url:
        redis = connect(url)
        server = int((await redis.info("server"))["process_id"])
        async with started(redis) as follower, follower.follow(KEY, after=0) as followed:
            await append(redis, KEY, 1, 1)
            assert await numbers(followed, 1) == [1]
            waiting = asyncio.create_task(followed.next(timeout=20))
            await until_blocked(redis)
            start = time.monotonic()
            os.kill(server, signal.SIGSTOP)
            try:
                with pytest.raises(Unavailable):
                    await waiting
                assert time.monotonic() - start < 7
            finally:
                os.kill(server, signal.SIGCONT)
            await append(redis, KEY, 2, 2)
            assert await numbers(followed, 2) == [2]
        await redis.aclose()


async def test_without_the_store_next_raises_unavailable(absent_redis: StoreClient) -> None:
    async with started(absent_redis) as follower, follower.follow(KEY, after=0) as followed:
        for _ in range(2):
            with pytest.raises(Unavailable):
                await followed.next(timeout=1)


async def test_a_deleted_log_yields_nothing_more(redis: StoreClient, follower: LogFollower) -> None:
    async with follower.follow(KEY, after=0) as followed:
        await append(redis, KEY, 1, 1)
        assert await numbers(followed, 1) == [1]
        await redis.delete(KEY)
        assert await followed.next(timeout=0.1) == []


async def test_a_log_that_lost_its_end_is_followed_by_each_from_its_own_position(
    redis: StoreClient, follower: LogFollower
) -> None:
    async with follower.follow(KEY, after=0) as early, follower.follow(KEY, after=0) as late:
        await append(redis, KEY, 1, 3)
        assert await numbers(early, 3) == [1, 2, 3]
        assert await early.next(timeout=0.05) == []
        await redis.xdel(KEY, "2-0", "3-0")
        await redis.delete(KEY)  # as after a crash of a Redis that does not sync every write
        await append(redis, KEY, 1, 1)
        assert await numbers(late, 1) == [1]
        waiting = asyncio.create_task(numbers(late, 4))
        await asyncio.sleep(0.05)
        await append(redis, KEY, 2, 4)
        assert await waiting == [2, 3, 4]
        assert await numbers(early, 4) == [4]


async def test_closing_fails_the_remaining_followers(redis: StoreClient) -> None:
    async with started(redis) as follower, follower.follow(KEY, after=0) as followed:
        waiting = asyncio.create_task(followed.next(timeout=10))
        await until_blocked(redis)
        await follower.close()
        with pytest.raises(Unavailable):
            await waiting

"""A lease has one holder, lasts as long as it is renewed, and ends by release or by expiry."""

import asyncio
import os
import signal
from pathlib import Path

import pytest

from service.errors import Unavailable
from service.store.connection import StoreClient, connect
from service.store.leases import Leases
from service.store.redis_server import embedded_redis

KEY = "lease"


async def test_one_of_many_requests_gets_it(redis: StoreClient) -> None:
    leases = Leases(redis, seconds=10)
    taken = await asyncio.gather(*(leases.acquire(KEY, f"holder-{i}") for i in range(8)))
    assert taken.count(True) == 1
    assert await leases.holder(KEY) == f"holder-{taken.index(True)}"


async def test_it_expires_unless_it_is_renewed(redis: StoreClient) -> None:
    leases = Leases(redis, seconds=0.2)
    assert await leases.acquire(KEY, "a")
    assert not await leases.acquire(KEY, "b")
    await asyncio.sleep(0.3)
    assert await leases.holder(KEY) is None
    assert await leases.acquire(KEY, "b")


async def test_only_its_holder_renews_and_releases_it(redis: StoreClient) -> None:
    leases = Leases(redis, seconds=10)
    await leases.acquire(KEY, "a")
    assert not await leases.renew(KEY, "b")
    assert not await leases.release(KEY, "b")
    assert await leases.holder(KEY) == "a"
    await redis.pexpire(KEY, 500)
    assert await leases.renew(KEY, "a")
    assert await redis.pttl(KEY) > 5000
    assert await leases.release(KEY, "a")
    assert await leases.holder(KEY) is None


async def test_an_expired_lease_is_not_renewed(redis: StoreClient) -> None:
    leases = Leases(redis, seconds=10)
    assert not await leases.renew(KEY, "a")
    assert await leases.holder(KEY) is None


async def test_it_is_held_as_long_as_the_block(redis: StoreClient) -> None:
    leases = Leases(redis, seconds=0.3)
    async with leases.hold(KEY, "a") as is_ours:
        assert is_ours
        await asyncio.sleep(0.8)
        assert await leases.holder(KEY) == "a"
    assert await leases.holder(KEY) is None


async def test_a_failed_attempt_does_not_disturb_the_holder(redis: StoreClient) -> None:
    leases = Leases(redis, seconds=10)
    async with leases.hold(KEY, "a"):
        async with leases.hold(KEY, "b") as is_theirs:
            assert not is_theirs
        assert await leases.holder(KEY) == "a"


async def test_a_block_that_fails_releases_it(redis: StoreClient) -> None:
    leases = Leases(redis, seconds=10)
    with pytest.raises(ZeroDivisionError):
        async with leases.hold(KEY, "a"):
            raise ZeroDivisionError
    assert await leases.holder(KEY) is None


async def test_a_store_that_dies_meanwhile_does_not_fail_the_block(tmp_path: Path) -> None:
    with embedded_redis(tmp_path) as url:
        redis = connect(url)
        async with Leases(redis, seconds=0.3).hold(KEY, "a") as is_ours:
            server = (await redis.info("server"))["process_id"]
            os.kill(server, signal.SIGKILL)
            await asyncio.sleep(0.3)  # a renewal fails meanwhile
        assert is_ours
        await redis.aclose()


async def test_without_the_store_acquiring_raises_unavailable(absent_redis: StoreClient) -> None:
    with pytest.raises(Unavailable):
        await Leases(absent_redis, seconds=1).acquire(KEY, "a")

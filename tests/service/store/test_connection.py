"""A client opens no more connections than it may, and waits for a free one within bounds."""

import asyncio
import time

import pytest

from service.errors import Unavailable
from service.store.connection import StoreClient, connect


async def test_commands_at_once_share_the_connections(redis: StoreClient, redis_url: str) -> None:
    client = connect(redis_url, max_connections=3)
    before = (await redis.info("clients"))["connected_clients"]
    counted = [client.incr("counter") for _ in range(200)]
    assert sorted(await asyncio.gather(*counted)) == list(range(1, 201))
    assert (await redis.info("clients"))["connected_clients"] <= before + 3
    await client.aclose()


async def test_a_connection_that_does_not_become_free_in_time_is_a_store_that_is_away(redis_url: str) -> None:
    client = connect(redis_url, max_connections=1)
    connection = await client.connection_pool.get_connection()  # type: ignore[no-untyped-call]
    pipeline = client.pipeline()
    pipeline.get("key")
    start = time.monotonic()
    for failing in (client.ping(), pipeline.execute()):
        with pytest.raises(Unavailable) as failure:
            await failing
        assert failure.value.code == "store_unavailable"
    assert time.monotonic() - start < 12
    await client.connection_pool.release(connection)
    assert await client.ping()
    await client.aclose()


async def test_a_dedicated_client_has_a_connection_of_its_own(redis_url: str) -> None:
    client = connect(redis_url, max_connections=1)
    dedicated = client.dedicated()
    ids = [await dedicated.client_id() for _ in range(3)]
    assert len(set(ids)) == 1
    assert await client.client_id() not in ids
    await dedicated.aclose()
    assert await client.ping()
    await client.aclose()

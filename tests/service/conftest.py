"""A real Redis for the tests of the service, empty at the start of each test, and one that is away."""

from collections.abc import AsyncIterator, Iterator

import pytest

from service.store.connection import StoreClient, connect
from service.store.redis_server import embedded_redis


@pytest.fixture(scope="session")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with embedded_redis(tmp_path_factory.mktemp("redis")) as url:
        yield url


@pytest.fixture
async def redis(redis_url: str) -> AsyncIterator[StoreClient]:
    client = connect(redis_url)
    await client.flushall()
    yield client
    await client.aclose()


@pytest.fixture
async def absent_redis() -> AsyncIterator[StoreClient]:
    client = connect("unix:///nowhere/redis.sock")
    yield client
    await client.aclose()

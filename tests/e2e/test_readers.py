"""Many readers on one replica get every event of their answers and take no connection to Redis from anything else."""

import asyncio
import statistics
from pathlib import Path

from benchmarks.readers import MAX_CONNECTIONS, read_along
from service.store.redis_server import found_redis
from tests.running import running

NUM_READERS = 120
"""More than the connections that each reader took before they shared one: redis-py's default pool has 100."""


def test_many_readers_share_one_connection_and_leave_writes_and_readiness_alone(tmp_path: Path) -> None:
    with running(tmp_path) as service, found_redis(tmp_path) as redis_url:
        found = asyncio.run(read_along(service.url, redis_url, num_readers=NUM_READERS, num_tokens=200))
    assert found.num_whole == NUM_READERS
    assert 0 < found.max_connections <= MAX_CONNECTIONS
    assert found.readyz_seconds
    assert found.num_unready == 0
    assert found.write_seconds
    assert statistics.median(found.write_seconds) < 2, "a slow machine runs 120 readers beside the service"

"""Clients of Redis: bounded pools, bounded waits, no automatic retries, and errors of redis-py as `Unavailable`."""

from typing import Any

import structlog
from redis import exceptions
from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.client import Pipeline
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from service.errors import StorageUnavailable, Unavailable

_log = structlog.get_logger(__name__)

MAX_CONNECTIONS = 16
"""Connections of one client, unless the caller asks for another number."""
COMMAND_TIMEOUT = 5.0
"""Seconds to wait for a reply, and before that for a free connection of the pool."""
_CONNECT_TIMEOUT = 2.0


class StoreClient(Redis):
    """A Redis client that raises `Unavailable` for every failure."""

    async def execute_command(self, *args: Any, **options: Any) -> Any:
        """Run one command.

        Raises:
            Unavailable: the server is unreachable, does not reply in time or refuses the command, or no connection of
                the pool becomes free in time.
        """
        try:
            return await super().execute_command(*args, **options)  # type: ignore[no-untyped-call]
        except RedisError as error:
            raise _translated(error) from error

    def pipeline(self, transaction: bool = True, shard_hint: str | None = None) -> "StorePipeline":  # noqa: FBT001
        """Several commands in one round trip."""
        return StorePipeline(self.connection_pool, self.response_callbacks, transaction, shard_hint)

    def dedicated(self) -> "StoreClient":
        """A client of the same server with a single connection of its own, for commands that block."""
        pool = BlockingConnectionPool(
            max_connections=1,
            timeout=COMMAND_TIMEOUT,
            connection_class=self.connection_pool.connection_class,
            **self.connection_pool.connection_kwargs,
        )
        client = StoreClient(connection_pool=pool, single_connection_client=True)
        client.auto_close_connection_pool = True
        return client


class StorePipeline(Pipeline):
    """A pipeline that raises `Unavailable` for every failure."""

    async def execute(self, raise_on_error: bool = True) -> list[Any]:  # noqa: FBT001
        """Run the commands.

        Raises:
            Unavailable: as `StoreClient.execute_command`.
        """
        try:
            return await super().execute(raise_on_error)
        except RedisError as error:
            raise _translated(error) from error


def connect(url: str, *, max_connections: int = MAX_CONNECTIONS) -> StoreClient:
    """A client of the server at `url` with at most `max_connections` connections; it connects at first use.

    Retries are off, because a command whose reply was lost may have been executed: callers repeat the commands that
    are safe to repeat.
    """
    pool = BlockingConnectionPool.from_url(
        url,
        max_connections=max_connections,
        timeout=COMMAND_TIMEOUT,
        protocol=2,
        socket_timeout=COMMAND_TIMEOUT,
        socket_connect_timeout=_CONNECT_TIMEOUT,
        retry=Retry(NoBackoff(), 0),
        decode_responses=False,
    )
    client = StoreClient.from_pool(pool)
    assert isinstance(client, StoreClient)
    return client


def text(value: object) -> str:
    """A reply of Redis, decoded as text."""
    assert isinstance(value, bytes)
    return value.decode()


def store_unavailable() -> Unavailable:
    """The error for a store that cannot be reached."""
    return StorageUnavailable("store_unavailable", "The store cannot be reached right now; try again in a moment.")


def has_timed_out(error: Unavailable) -> bool:
    """Whether the server was reached and did not reply in time."""
    return isinstance(error.__cause__, exceptions.TimeoutError)


def _translated(error: RedisError) -> Unavailable:
    _log.warning("store_unavailable", error=type(error).__name__)
    return store_unavailable()

"""The connection to Redis: pinned protocol, bounded waits, no blind retries, foreign errors translated."""

from typing import Any

import structlog
from redis.asyncio import Redis
from redis.asyncio.client import Pipeline
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from service.errors import StorageUnavailable, Unavailable

_log = structlog.get_logger(__name__)

_TIMEOUT = 5.0  # seconds; a blocking read asks for less


class StoreClient(Redis):
    """A Redis client whose every failure is `Unavailable`."""

    async def execute_command(self, *args: Any, **options: Any) -> Any:
        """Run one command.

        Raises:
            Unavailable: the server cannot be reached, does not answer in time, or refuses.
        """
        try:
            return await super().execute_command(*args, **options)  # type: ignore[no-untyped-call]
        except RedisError as error:
            raise _translated(error) from error

    def pipeline(self, transaction: bool = True, shard_hint: str | None = None) -> "StorePipeline":  # noqa: FBT001
        """Many commands in one round trip."""
        return StorePipeline(self.connection_pool, self.response_callbacks, transaction, shard_hint)


class StorePipeline(Pipeline):
    """A pipeline whose failure is `Unavailable`."""

    async def execute(self, raise_on_error: bool = True) -> list[Any]:  # noqa: FBT001
        """Run the commands.

        Raises:
            Unavailable: the server cannot be reached, does not answer in time, or refuses.
        """
        try:
            return await super().execute(raise_on_error)
        except RedisError as error:
            raise _translated(error) from error


def connect(url: str) -> StoreClient:
    """A client of the server at `url`; connects at first use.

    Retries are off because a command may have been executed although its reply was lost: whoever can repeat a
    command safely does so itself.
    """
    client = StoreClient.from_url(
        url,
        protocol=2,
        socket_timeout=_TIMEOUT,
        socket_connect_timeout=2.0,
        retry=Retry(NoBackoff(), 0),
        decode_responses=False,
    )
    assert isinstance(client, StoreClient)
    return client


def text(value: object) -> str:
    """A reply of Redis that is text."""
    assert isinstance(value, bytes)
    return value.decode()


def _translated(error: RedisError) -> Unavailable:
    _log.warning("store_unavailable", error=type(error).__name__)
    return StorageUnavailable("store_unavailable", "The store cannot be reached right now; try again in a moment.")

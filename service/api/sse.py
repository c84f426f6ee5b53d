"""Server-Sent Events: a log's events as they go over the wire, with a sign of life while nothing happens."""

import contextlib
import time
from collections.abc import AsyncGenerator
from typing import TypeVar

import orjson
import structlog
from fastapi.responses import StreamingResponse

from service.errors import InternalError, ServiceError
from service.store.event_log import LogEvent

_T = TypeVar("_T")

_log = structlog.get_logger(__name__)

_KEEP_ALIVE = 10.0  # seconds; proxies close what is silent for longer

HEADERS = {
    "Cache-Control": "no-store",
    "X-Accel-Buffering": "no",  # a proxy that buffers would hold the tokens back
}


def data_stream(documents: AsyncGenerator[bytes | None, None]) -> StreamingResponse:
    """A response of events that have data alone, as OpenAI's clients read them; None as in `event_stream`."""
    return StreamingResponse(_signed(_data(documents)), media_type="text/event-stream", headers=HEADERS)


def event_stream(events: AsyncGenerator[LogEvent | None, None]) -> StreamingResponse:
    """A response of the events; None among them stands for a moment in which nothing happened."""
    return StreamingResponse(_signed(_named(events)), media_type="text/event-stream", headers=HEADERS)


async def _named(events: AsyncGenerator[LogEvent | None, None]) -> AsyncGenerator[bytes | None, None]:
    async with contextlib.aclosing(_honest(events)) as told:
        async for event in told:
            if isinstance(event, ServiceError):
                # without an id: a client that reconnects goes on after the last event of the log
                yield b"event: error\ndata: %s\n\n" % orjson.dumps(event.envelope())
            else:
                yield None if event is None else encode(event)


async def _data(documents: AsyncGenerator[bytes | None, None]) -> AsyncGenerator[bytes | None, None]:
    async with contextlib.aclosing(_honest(documents)) as told:
        async for document in told:
            if isinstance(document, ServiceError):
                yield b"data: %s\n\n" % orjson.dumps(document.envelope())
            else:
                yield None if document is None else b"data: %s\n\n" % document


async def _honest(events: AsyncGenerator[_T, None]) -> AsyncGenerator[_T | ServiceError, None]:
    """The events, and at last what broke them off: the status line is long sent, so it has to be said in the stream."""
    try:
        async with contextlib.aclosing(events):  # so that a reader who leaves is noticed at once
            async for event in events:
                yield event
    except ServiceError as error:
        yield error
    except Exception:  # noqa: BLE001
        _log.exception("stream_failed")
        yield InternalError("internal_error", "Something went wrong on our side.")


async def _signed(encoded: AsyncGenerator[bytes | None, None]) -> AsyncGenerator[bytes, None]:
    """The bytes, with a sign of life where there are none for long."""
    last_sign = time.monotonic()
    async with contextlib.aclosing(encoded):
        async for event in encoded:
            if event is not None:
                yield event
            elif time.monotonic() - last_sign >= _KEEP_ALIVE:
                yield b": keep-alive\n\n"
            else:
                continue
            last_sign = time.monotonic()


def encode(event: LogEvent) -> bytes:
    """One event; its data is JSON on one line."""
    return b"id: %d\nevent: %s\ndata: %s\n\n" % (event.number, event.name.encode(), orjson.dumps(event.data))

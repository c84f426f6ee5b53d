"""Server-Sent Events: a log's events as they go over the wire, with a sign of life while nothing happens."""

import contextlib
import time
from collections.abc import AsyncGenerator

import orjson
import structlog
from fastapi.responses import StreamingResponse

from service.errors import InternalError, ServiceError
from service.store.event_log import LogEvent

_log = structlog.get_logger(__name__)

_KEEP_ALIVE = 10.0  # seconds; proxies close what is silent for longer

HEADERS = {
    "Cache-Control": "no-store",
    "X-Accel-Buffering": "no",  # a proxy that buffers would hold the tokens back
}


def event_stream(events: AsyncGenerator[LogEvent | None, None]) -> StreamingResponse:
    """A response of the events; None among them stands for a moment in which nothing happened."""
    return StreamingResponse(_encoded(events), media_type="text/event-stream", headers=HEADERS)


async def _encoded(events: AsyncGenerator[LogEvent | None, None]) -> AsyncGenerator[bytes, None]:
    last_sign = time.monotonic()
    try:
        async with contextlib.aclosing(events):  # so that a reader who leaves is noticed at once
            async for event in events:
                if event is not None:
                    yield encode(event)
                    last_sign = time.monotonic()
                elif time.monotonic() - last_sign >= _KEEP_ALIVE:
                    yield b": keep-alive\n\n"
                    last_sign = time.monotonic()
    except ServiceError as error:
        yield _error(error)
    except Exception:  # noqa: BLE001  the status line is long sent: all that is left is an honest last event
        _log.exception("stream_failed")
        yield _error(InternalError("internal_error", "Something went wrong on our side."))


def encode(event: LogEvent) -> bytes:
    """One event; its data is JSON on one line."""
    return b"id: %d\nevent: %s\ndata: %s\n\n" % (event.number, event.name.encode(), orjson.dumps(event.data))


def _error(error: ServiceError) -> bytes:
    # without an id: a client that reconnects goes on after the last event of the log
    return b"event: error\ndata: %s\n\n" % orjson.dumps(error.envelope())

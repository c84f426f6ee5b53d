"""Server-Sent Events: the wire form of events, and a response that sends keep-alive comments while there are none."""

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, Sequence
from typing import TypeVar

import orjson
import structlog
from fastapi.responses import StreamingResponse
from starlette.types import Send

from service.errors import ServiceError, unexpected_error
from service.store.event_log import LogEvent

_T = TypeVar("_T")

_log = structlog.get_logger(__name__)

_KEEP_ALIVE = 10.0
"""Seconds without an event until a comment is sent; proxies close connections that are idle for longer."""
_KEEP_ALIVE_COMMENT = b": keep-alive\n\n"


class EventStreamResponse(StreamingResponse):
    """Streams encoded events; sends a comment whenever `_KEEP_ALIVE` seconds pass without one.

    Comments come from a task of their own, so that waiting for the next event is never cancelled. The generator is
    closed when the client disconnects.
    """

    media_type = "text/event-stream"

    def __init__(self, encoded_events: AsyncGenerator[bytes, None]) -> None:
        # Without X-Accel-Buffering, nginx would collect events before it passes them on.
        super().__init__(encoded_events, headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"})
        self._encoded_events = encoded_events
        self._is_sending = asyncio.Lock()
        self._last_sent_at = time.monotonic()

    async def stream_response(self, send: Send) -> None:
        """Send the response's start, its events and its end."""
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        keeping_alive = asyncio.create_task(self._keep_alive(send))
        try:
            async with contextlib.aclosing(self._encoded_events):
                async for chunk in self._encoded_events:
                    await self._send_chunk(send, chunk)
        finally:
            keeping_alive.cancel()
        await asyncio.wait({keeping_alive})
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _keep_alive(self, send: Send) -> None:
        while True:
            await asyncio.sleep(self._last_sent_at + _KEEP_ALIVE - time.monotonic())
            if time.monotonic() - self._last_sent_at >= _KEEP_ALIVE:
                await self._send_chunk(send, _KEEP_ALIVE_COMMENT)

    async def _send_chunk(self, send: Send, chunk: bytes) -> None:
        async with self._is_sending:
            await send({"type": "http.response.body", "body": chunk, "more_body": True})
            self._last_sent_at = time.monotonic()


def event_stream(batches: AsyncGenerator[Sequence[LogEvent], None]) -> EventStreamResponse:
    """A response of named, numbered events. Each batch is sent at once, which is cheaper for many busy readers."""
    return EventStreamResponse(_encode_batches(batches))


def data_stream(documents: AsyncGenerator[bytes, None]) -> EventStreamResponse:
    """A response of events without name and id, as OpenAI's clients read them; each document is JSON on one line."""
    return EventStreamResponse(_encode_documents(documents))


def encode(event: LogEvent) -> bytes:
    """The wire form of one event; its data is JSON on one line."""
    return b"id: %d\nevent: %s\ndata: %s\n\n" % (event.number, event.name.encode(), orjson.dumps(event.data))


async def _encode_batches(batches: AsyncGenerator[Sequence[LogEvent], None]) -> AsyncGenerator[bytes, None]:
    async with contextlib.aclosing(_with_error_at_end(batches)) as all_batches:
        async for batch in all_batches:
            if isinstance(batch, ServiceError):
                # Without an id: a client that reconnects continues after the last event of the log.
                yield b"event: error\ndata: %s\n\n" % orjson.dumps(batch.envelope())
            else:
                yield b"".join(map(encode, batch))


async def _encode_documents(documents: AsyncGenerator[bytes, None]) -> AsyncGenerator[bytes, None]:
    async with contextlib.aclosing(_with_error_at_end(documents)) as all_documents:
        async for document in all_documents:
            data = orjson.dumps(document.envelope()) if isinstance(document, ServiceError) else document
            yield b"data: %s\n\n" % data


async def _with_error_at_end(events: AsyncGenerator[_T, None]) -> AsyncGenerator[_T | ServiceError, None]:
    """The events, then the error that ended them early, if any: it is too late for an HTTP status."""
    try:
        async with contextlib.aclosing(events):
            async for event in events:
                yield event
    except ServiceError as error:
        yield error
    except Exception:  # noqa: BLE001
        _log.exception("stream_failed")
        yield unexpected_error()

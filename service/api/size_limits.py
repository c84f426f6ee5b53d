"""Limits on the size of a request: its head, in uvicorn's protocol, and its body, in ASGI middleware."""

from collections.abc import Collection, Mapping

import orjson
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from service.errors import InvalidRequest

MAX_HEAD = 64 * 1024
"""Bytes of a request line and its headers."""


class BoundedHeadProtocol(HttpToolsProtocol):
    """Refuses a request whose head is longer than `MAX_HEAD` and closes the connection; uvicorn sets no limit."""

    _in_head = False
    _num_head_bytes = 0

    def data_received(self, data: bytes) -> None:
        """Parse bytes from the client and count those of the head."""
        if self.transport.is_closing():  # the request was refused: ignore the rest of it
            return
        super().data_received(data)
        self._num_head_bytes = self._num_head_bytes + len(data) if self._in_head else 0
        if self._num_head_bytes > MAX_HEAD:
            self.transport.write(_refusal())
            self.transport.close()

    def on_message_begin(self) -> None:
        """Note that a request's head begins."""
        self._in_head = True
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """Note that the head is complete."""
        self._in_head = False
        super().on_headers_complete()


def _refusal() -> bytes:
    """The HTTP response, as it goes over the wire."""
    error = InvalidRequest("headers_too_large", "The headers are too long; send fewer.")
    status = b"HTTP/1.1 %d Request Header Fields Too Large\r\n" % error.status
    return status + b"Connection: close\r\nContent-Type: application/json\r\n\r\n" + orjson.dumps(error.envelope())


class LimitBodies:
    """Refuses a body as soon as more than `max_bytes` of it arrive, with or without a `Content-Length`.

    Paths in `unlimited`, and paths below them, check the size of their bodies themselves. `larger` has the limits of
    individual paths.
    """

    def __init__(
        self, app: ASGIApp, *, max_bytes: int, unlimited: Collection[str], larger: Mapping[str, int] | None = None
    ) -> None:
        self._app = app
        self._max_bytes = max_bytes
        self._unlimited = unlimited
        self._larger = larger or {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one ASGI scope."""
        if scope["type"] != "http" or self._is_unlimited(scope["path"]):
            await self._app(scope, receive, send)
            return
        max_bytes = self._larger.get(scope["path"], self._max_bytes)
        num_bytes = 0

        async def limited() -> Message:
            nonlocal num_bytes
            message = await receive()
            num_bytes += len(message.get("body", b""))
            if num_bytes > max_bytes:
                # raised where the route reads the body, so that it is handled like any other error
                raise HTTPException(413, f"A body may have at most {max_bytes} bytes")
            return message

        await self._app(scope, limited, send)

    def _is_unlimited(self, path: str) -> bool:
        return any(path == prefix or path.startswith(f"{prefix}/") for prefix in self._unlimited)

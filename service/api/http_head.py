"""uvicorn's HTTP protocol with a bound on a request's head, which uvicorn itself reads without limit."""

import orjson
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from service.errors import InvalidRequest

MAX_HEAD = 64 * 1024
"""Bytes of a request line and its headers."""


class BoundedHeadProtocol(HttpToolsProtocol):
    """Refuses a request whose head does not end within `MAX_HEAD` bytes, and closes the connection."""

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

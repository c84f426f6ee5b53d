"""The HTTP protocol of the server, with a bound on a request's head: uvicorn's own reads headers without end."""

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

MAX_HEAD = 64 * 1024
"""Bytes of a request line and its headers that may be waited on."""
_REFUSAL = (
    b"HTTP/1.1 431 Request Header Fields Too Large\r\nConnection: close\r\nContent-Type: application/json\r\n\r\n"
    b'{"error":{"message":"The headers are too long; send fewer.","type":"invalid_request_error","param":null,'
    b'"code":"headers_too_large"}}'
)


class BoundedHeadProtocol(HttpToolsProtocol):
    """Refuses a request whose head does not end within `MAX_HEAD` bytes, and hangs up."""

    _in_head = False
    _num_head_bytes = 0

    def data_received(self, data: bytes) -> None:
        """Take what came from the client."""
        if self.transport.is_closing():  # refused: what still comes is not looked at
            return
        super().data_received(data)
        self._num_head_bytes = self._num_head_bytes + len(data) if self._in_head else 0
        if self._num_head_bytes > MAX_HEAD:
            self.transport.write(_REFUSAL)
            self.transport.close()

    def on_message_begin(self) -> None:
        """A request begins."""
        self._in_head = True
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """Its head is whole."""
        self._in_head = False
        super().on_headers_complete()

"""A stub of the service: gives the client a list of responses and records its requests."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import httpx2

from service.terminal.client import Client

Reply = Callable[[httpx2.Request], httpx2.Response]


class BrokenStream(httpx2.SyncByteStream):
    """A response body that ends with a connection error."""

    def __init__(self, body: str) -> None:
        self._body = body.encode()

    def __iter__(self) -> Iterator[bytes]:
        yield self._body
        raise httpx2.ReadError("the server closed the connection")


def lost(request: httpx2.Request) -> httpx2.Response:
    """A request whose response is lost."""
    raise httpx2.ReadError("the server closed the connection", request=request)


def unreachable(request: httpx2.Request) -> httpx2.Response:
    raise httpx2.ConnectError("connection refused", request=request)


def says(document: object, *, status: int = 200, **headers: str) -> Reply:
    """A response with a JSON document."""
    fields = {name.replace("_", "-"): value for name, value in headers.items()}
    return lambda request: httpx2.Response(status, headers=fields, content=json.dumps(document))


def refuses(code: str, kind: str, status: int, **headers: str) -> Reply:
    envelope = {"error": {"message": f"It is {code}.", "type": kind, "param": None, "code": code}}
    return says(envelope, status=status, **headers)


def events(*items: tuple[int | None, str, dict[str, Any]]) -> str:
    """The body of an event stream."""
    heads = ("" if number is None else f"id: {number}\n" for number, _, _ in items)
    bodies = (f"event: {name}\ndata: {json.dumps(data)}\n\n" for _, name, data in items)
    return "".join(head + body for head, body in zip(heads, bodies, strict=True))


def streams(*items: tuple[int | None, str, dict[str, Any]]) -> Reply:
    return lambda request: httpx2.Response(200, content=events(*items))


def breaks_off(*items: tuple[int | None, str, dict[str, Any]], rest: str = "") -> Reply:
    """A stream whose connection is lost after these events and `rest`, a part of the next one."""
    return lambda request: httpx2.Response(200, stream=BrokenStream(events(*items) + rest))


@dataclass
class Stub:
    """Gives its responses in order; a further request fails the test."""

    replies: list[Reply]
    requests: list[httpx2.Request] = field(default_factory=list)
    slept: list[float] = field(default_factory=list)
    notified: list[str] = field(default_factory=list)

    @property
    def client(self) -> Client:
        return Client(
            "http://service.test",
            api_key="rtk_1",
            transport=httpx2.MockTransport(self._reply),
            sleep=self.slept.append,
            notify=self.notified.append,
        )

    def _reply(self, request: httpx2.Request) -> httpx2.Response:
        request.read()
        self.requests.append(request)
        assert self.replies, f"{request.method} {request.url} is one request too many"
        return self.replies.pop(0)(request)

    @property
    def paths(self) -> list[str]:
        return [f"{request.method} {request.url.path}" for request in self.requests]

    def header(self, name: str) -> list[str | None]:
        """The values of a header in all requests."""
        return [request.headers.get(name) for request in self.requests]

"""A service that is a list of replies: what the client sends is kept, what it gets is what the test says."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import httpx2

from service.terminal.client import Client

Reply = Callable[[httpx2.Request], httpx2.Response]


class BrokenStream(httpx2.SyncByteStream):
    """A body that breaks off."""

    def __init__(self, body: str) -> None:
        self._body = body.encode()

    def __iter__(self) -> Iterator[bytes]:
        yield self._body
        raise httpx2.ReadError("the other side is gone")


def lost(request: httpx2.Request) -> httpx2.Response:
    """No reply at all."""
    raise httpx2.ReadError("the other side is gone", request=request)


def unreachable(request: httpx2.Request) -> httpx2.Response:
    raise httpx2.ConnectError("nobody listens", request=request)


def says(document: object, *, status: int = 200, **headers: str) -> Reply:
    """A reply with a JSON document."""
    told = {name.replace("_", "-"): value for name, value in headers.items()}
    return lambda request: httpx2.Response(status, headers=told, content=json.dumps(document))


def refuses(code: str, kind: str, status: int, **headers: str) -> Reply:
    envelope = {"error": {"message": f"It is {code}.", "type": kind, "param": None, "code": code}}
    return says(envelope, status=status, **headers)


def events(*told: tuple[int | None, str, dict[str, Any]]) -> str:
    """A body of events."""
    heads = ("" if number is None else f"id: {number}\n" for number, _, _ in told)
    bodies = (f"event: {name}\ndata: {json.dumps(data)}\n\n" for _, name, data in told)
    return "".join(head + body for head, body in zip(heads, bodies, strict=True))


def streams(*told: tuple[int | None, str, dict[str, Any]]) -> Reply:
    return lambda request: httpx2.Response(200, content=events(*told))


def breaks_off(*told: tuple[int | None, str, dict[str, Any]], rest: str = "") -> Reply:
    """A stream that is lost after these events, and perhaps in the middle of one."""
    return lambda request: httpx2.Response(200, stream=BrokenStream(events(*told) + rest))


@dataclass
class Stub:
    """Gives its replies in order; anything beyond them is a mistake of the client's."""

    replies: list[Reply]
    requests: list[httpx2.Request] = field(default_factory=list)
    slept: list[float] = field(default_factory=list)
    told: list[str] = field(default_factory=list)

    @property
    def client(self) -> Client:
        return Client(
            "http://service.test",
            api_key="rtk_1",
            transport=httpx2.MockTransport(self._reply),
            sleep=self.slept.append,
            tell=self.told.append,
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
        """What each request said under this name."""
        return [request.headers.get(name) for request in self.requests]

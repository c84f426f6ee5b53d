"""Every error of a route leaves in one envelope, with a request id, and reveals no internals."""

import json
from collections.abc import AsyncIterator
from typing import Any

import httpx2
import pytest
from fastapi import FastAPI
from pydantic import BaseModel, ConfigDict

from service.api.errors import install_error_handlers
from service.api.request_log import ObserveRequests
from service.api.size_limits import LimitBodies
from service.errors import Conflict, Overloaded
from service.observability.metrics import Metrics

LIMIT = 1000
FOUR = {"message", "type", "param", "code"}


class Body(BaseModel):
    model_config = ConfigDict(extra="forbid")
    count: int = 0


METRICS = Metrics()
FAILURES = {
    "busy": Conflict("session_busy", "It is."),
    "full": Overloaded("overloaded", "It is."),
    "bug": KeyError("hunter2"),
}


@pytest.fixture
async def client() -> AsyncIterator[httpx2.AsyncClient]:
    app = FastAPI()
    app.add_middleware(LimitBodies, max_bytes=LIMIT, unlimited=frozenset({"/files"}))
    app.add_middleware(ObserveRequests, metrics=METRICS, routes=())
    install_error_handlers(app)

    @app.get("/{failure}")
    async def fail(failure: str) -> None:
        raise FAILURES[failure]

    @app.post("/things")
    @app.post("/files")
    async def take(body: Body) -> Body:
        return body

    transport = httpx2.ASGITransport(app, raise_app_exceptions=False)
    async with httpx2.AsyncClient(transport=transport, base_url="http://test") as client:
        yield client


def error(reply: httpx2.Response) -> dict[str, Any]:
    found: dict[str, Any] = reply.json()["error"]
    assert found.keys() == FOUR
    return found


async def test_an_error_keeps_its_status_code_and_retry_after(client: httpx2.AsyncClient) -> None:
    busy, full = await client.get("/busy"), await client.get("/full")
    assert (busy.status_code, error(busy)["code"]) == (409, "session_busy")
    assert "Retry-After" not in busy.headers
    assert (full.status_code, full.headers["Retry-After"]) == (503, "2")


async def test_the_text_of_an_unexpected_exception_is_not_sent(client: httpx2.AsyncClient) -> None:
    reply = await client.get("/bug")
    assert (reply.status_code, error(reply)["code"]) == (500, "internal_error")
    assert "hunter2" not in reply.text


async def test_every_response_has_an_id_of_its_own(client: httpx2.AsyncClient) -> None:
    ids = [(await client.get(path)).headers["X-Request-Id"] for path in ("/busy", "/busy", "/nowhere/at/all")]
    assert len(set(ids)) == 3


async def test_responses_are_counted_by_route_and_not_by_path(client: httpx2.AsyncClient) -> None:
    for path in ("/busy", "/full", "/a/b", "/c/d"):
        await client.get(path)
    counted = METRICS.render().decode()
    assert 'reeltalk_http_requests_total{method="GET",route="/{failure}",status="409"}' in counted
    assert 'reeltalk_http_requests_total{method="GET",route="unknown",status="404"}' in counted
    assert "/a/b" not in counted


@pytest.mark.parametrize(
    ("body", "code", "param"),
    [
        (b'{"count": "many"}', "invalid_value", "count"),
        (b'{"colour": 1}', "unknown_field", "colour"),
        (b'{"count"', "malformed_json", None),
        (b'{"\\ud800": 1}', "invalid_value", None),
        (b'{"count": "\\ud800"}', "invalid_value", "count"),
        (b"\xff\xfe", "malformed_json", None),
    ],
)
async def test_a_body_that_does_not_fit_is_refused_by_field(
    client: httpx2.AsyncClient, body: bytes, code: str, param: str | None
) -> None:
    reply = await client.post("/things", content=body, headers={"Content-Type": "application/json"})
    assert (reply.status_code, error(reply)["code"]) == (422, code)
    if param is not None:
        assert error(reply)["param"] == param


@pytest.mark.parametrize("announced", [True, False])
async def test_a_body_over_the_limit_is_refused_with_or_without_a_length(
    client: httpx2.AsyncClient, announced: bool
) -> None:
    content = json.dumps({"count": 1}).encode() + b" " * LIMIT

    async def in_chunks() -> AsyncIterator[bytes]:
        for at in range(0, len(content), 100):
            yield content[at : at + 100]

    headers = {"Content-Type": "application/json"}
    for path, status in (("/things", 413), ("/files", 200)):
        reply = await client.post(path, content=content if announced else in_chunks(), headers=headers)
        assert reply.status_code == status, reply.text
    fits = await client.post("/things", content=b'{"count": 1}', headers=headers)
    assert fits.json() == {"count": 1}

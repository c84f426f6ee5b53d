"""Every route requires a key, except the public ones that are listed here."""

from collections.abc import AsyncIterator
from types import SimpleNamespace

import httpx2
import pytest
from fastapi import FastAPI
from fastapi.routing import iter_route_contexts
from structlog.testing import capture_logs

from service.access.authentication import Authentication
from service.access.key_format import new_key
from service.access.scopes import Scope
from service.app import create_app
from service.observability.metrics import Metrics
from service.settings import Settings
from service.store.api_keys import ApiKeyStore
from service.store.connection import StoreClient

PUBLIC = {"/healthz", "/readyz", "/", "/static/app.js"}


@pytest.fixture
def app(redis: StoreClient) -> FastAPI:
    """The whole app with a service that can only authenticate: requests that pass the middleware fail."""
    app = create_app(Settings(), redis_url="redis://nowhere")
    authentication = Authentication(ApiKeyStore(redis), settings=Settings(), metrics=Metrics())
    app.state.service = SimpleNamespace(authentication=authentication)
    return app


@pytest.fixture
async def client(app: FastAPI) -> AsyncIterator[httpx2.AsyncClient]:
    transport = httpx2.ASGITransport(app, raise_app_exceptions=False)
    async with httpx2.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
        yield client


async def key(redis: StoreClient, *scopes: Scope) -> dict[str, str]:
    token, record = new_key(name="test", scopes=scopes)
    await ApiKeyStore(redis).add(record)
    return {"Authorization": f"Bearer {token}"}


def routes(app: FastAPI) -> set[tuple[str, str]]:
    """The method and path of every route."""
    found = set()
    for route in iter_route_contexts(app.routes):
        methods = getattr(route, "methods", None) or {"GET", "POST"}
        path = "/static/app.js" if route.path == "/static" else route.path or ""
        found |= {(method, path) for method in methods}
    return found


async def test_every_route_except_the_public_ones_requires_a_key(
    app: FastAPI, client: httpx2.AsyncClient, redis: StoreClient
) -> None:
    await key(redis, Scope.USE)
    all_routes = routes(app)
    assert len(all_routes) > 20
    assert {("POST", "/v1/videos"), ("GET", "/metrics"), ("GET", "/docs")} <= all_routes
    for method, path in all_routes:
        reply = await client.request(method, path)
        if path in PUBLIC:
            assert reply.status_code not in {401, 403}, path
        else:
            assert reply.status_code == 401, path
            assert reply.headers["WWW-Authenticate"].startswith("Bearer")
    assert (await client.get("/not/a/route")).status_code == 401


async def test_a_refused_request_is_logged_under_its_route(client: httpx2.AsyncClient, redis: StoreClient) -> None:
    await key(redis, Scope.USE)
    paths = {f"/v1/videos/vid_{'0' * 32}": "/v1/videos/{video_id}", "/v1/sessions": "/v1/sessions", "/v1/no": "unknown"}
    with capture_logs() as logged:
        for path in paths:
            await client.get(path)
    assert [line["route"] for line in logged if line["event"] == "request"] == list(paths.values())


async def test_each_scope_gives_access_to_its_own_paths_only(client: httpx2.AsyncClient, redis: StoreClient) -> None:
    use, metrics, admin = [await key(redis, scope) for scope in (Scope.USE, Scope.METRICS, Scope.ADMIN)]
    statuses = {
        path: [(await client.request(method, path, headers=headers)).status_code for headers in (use, metrics, admin)]
        for method, path in (("GET", "/metrics"), ("POST", "/admin/drain"), ("GET", "/openapi.json"))
    }
    assert statuses["/metrics"][0] == statuses["/metrics"][2] == 403
    assert statuses["/metrics"][1] not in {401, 403}
    assert statuses["/admin/drain"][:2] == [403, 403]
    assert statuses["/admin/drain"][2] not in {401, 403}
    assert statuses["/openapi.json"] == [200, 403, 403]


async def test_a_refused_body_is_not_read(client: httpx2.AsyncClient, redis: StoreClient) -> None:
    await key(redis, Scope.USE)
    read = 0

    async def body() -> AsyncIterator[bytes]:
        nonlocal read
        for _ in range(1000):
            read += 1
            yield b"x" * 1000

    reply = await client.post("/v1/videos", content=body(), headers={"Content-Type": "video/mp4"})
    assert reply.status_code == 401
    assert read < 3


@pytest.mark.parametrize("headers", [{"Host": "evil.example"}, {"Origin": "https://evil.example"}])
async def test_a_foreign_website_is_refused_everywhere_while_there_is_no_key(
    client: httpx2.AsyncClient, redis: StoreClient, headers: dict[str, str]
) -> None:
    for path in ("/v1/videos", "/", "/healthz", "/metrics"):
        assert (await client.get(path, headers=headers)).status_code == 403
        bogus = headers | {"Authorization": "Bearer x"}
        assert (await client.get(path, headers=bogus)).status_code == 403
    shown = await key(redis, Scope.USE)
    assert (await client.get("/openapi.json", headers=headers | shown)).status_code == 200
    assert (await client.get("/", headers=headers)).status_code == 200
    assert (await client.get("/openapi.json", headers=headers)).status_code == 401


async def test_the_openapi_document_requires_a_key_wherever_the_middleware_does(app: FastAPI) -> None:
    for path, operations in app.openapi()["paths"].items():
        for method, operation in operations.items():
            assert bool(operation.get("security")) == (path not in PUBLIC), (method, path)
            assert ("401" in operation["responses"]) == (path not in PUBLIC), (method, path)

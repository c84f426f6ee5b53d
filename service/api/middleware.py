"""Around every request: an id, a log line, a count, a bound. Plain ASGI, so that streams pass untouched."""

import time
from collections.abc import Collection, Mapping, Sequence

import structlog
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.routing import BaseRoute, Match
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.ids import new_id
from service.observability import tracing
from service.observability.metrics import Metrics

_log = structlog.get_logger(__name__)
TUS_VERSION = "1.0.0"
_QUIET = {"/healthz", "/readyz", "/metrics"}


class ObserveRequests:
    """Gives each request an id (`X-Request-Id`), logs and counts its response. No query and no body is logged."""

    def __init__(self, app: ASGIApp, *, metrics: Metrics, routes: Sequence[BaseRoute]) -> None:
        self._app = app
        self._metrics = metrics
        self._routes = routes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one ASGI scope."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id, status, start = new_id("req"), 500, time.perf_counter()
        self._metrics.http_requests_active.inc()

        async def observed(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["X-Request-Id"] = request_id
            await send(message)

        trace = _begin_trace(scope, request_id)
        with structlog.contextvars.bound_contextvars(request_id=request_id), trace.current():
            try:
                await self._app(scope, receive, observed)
            finally:
                route = self._route(scope)
                seconds = time.perf_counter() - start
                self._metrics.http_requests_active.dec()
                self._metrics.show_response(method=scope["method"], route=route, status=status, seconds=seconds)
                trace.end(
                    {"http.route": route, "http.response.status_code": status},
                    name=f"{scope['method']} {route}",
                    failed=status >= 500,
                )
                if scope["path"] not in _QUIET:
                    caller = scope.get("state", {}).get("caller")
                    asked_by = {} if caller is None or caller.key_id is None else {"key_id": caller.key_id}
                    _log.info(
                        "request",
                        method=scope["method"],
                        route=route,
                        status=status,
                        duration_ms=round(seconds * 1000, 1),
                        **asked_by,
                    )

    def _route(self, scope: Scope) -> str:
        """The template of the request's path, even if it was refused on the way; `unknown` where there is none."""
        route = scope.get("route")
        if route is None:
            route = next((each for each in self._routes if each.matches(scope)[0] is Match.FULL), None)
        return getattr(route, "path", "unknown")


def _begin_trace(scope: Scope, request_id: str) -> tracing.Trace:
    """The span of a request, under the caller's own if it has one."""
    if scope["path"] in _QUIET:
        return tracing.Trace()
    method: str = scope["method"]
    attributes = {"http.request.method": method, "reeltalk.request.id": request_id}
    return tracing.begin(method, attributes, kind="server", parent=Headers(scope=scope).get("traceparent"))


class LimitBodies:
    """Refuses bodies that grow over `max_bytes`, announced or not.

    Paths that receive files, and those under them, count for themselves; `larger` has bounds of other paths.
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
        if scope["type"] != "http" or self._takes_files(scope["path"]):
            await self._app(scope, receive, send)
            return
        max_bytes = self._larger.get(scope["path"], self._max_bytes)
        num_bytes = 0

        async def limited() -> Message:
            nonlocal num_bytes
            message = await receive()
            num_bytes += len(message.get("body", b""))
            if num_bytes > max_bytes:
                # raised where the body is read, so that it leaves the app like any other refusal
                raise HTTPException(413, f"A body may have at most {max_bytes} bytes")
            return message

        await self._app(scope, limited, send)

    def _takes_files(self, path: str) -> bool:
        return any(path == taker or path.startswith(f"{taker}/") for taker in self._unlimited)


class Tus:
    """What the tus protocol asks of every request and response under `path`, whatever else they say."""

    def __init__(self, app: ASGIApp, *, path: str) -> None:
        self._app = app
        self._path = path

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one ASGI scope."""
        if scope["type"] != "http" or not (scope["path"] + "/").startswith(f"{self._path}/"):
            await self._app(scope, receive, send)
            return
        meant = Headers(scope=scope).get("x-http-method-override", "").upper()
        if scope["method"] == "POST" and meant in {"PATCH", "DELETE", "HEAD"}:
            scope = {**scope, "method": meant}

        async def versioned(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)["Tus-Resumable"] = TUS_VERSION
            await send(message)

        await self._app(scope, receive, versioned)

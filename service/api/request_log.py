"""Middleware that gives each request an id, a log line, metrics and a trace. Plain ASGI: it does not buffer streams."""

import time
from collections.abc import Sequence

import structlog
from starlette.datastructures import Headers, MutableHeaders
from starlette.routing import BaseRoute, Match
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.ids import new_id
from service.observability import tracing
from service.observability.metrics import Metrics

_log = structlog.get_logger(__name__)
_UNLOGGED_PATHS = {"/healthz", "/readyz", "/metrics"}


class ObserveRequests:
    """Gives each request an id (`X-Request-Id`), logs and counts its response. Queries and bodies are not logged."""

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
                if scope["path"] not in _UNLOGGED_PATHS:
                    caller = scope.get("state", {}).get("caller")
                    key = {} if caller is None or caller.key_id is None else {"key_id": caller.key_id}
                    _log.info(
                        "request",
                        method=scope["method"],
                        route=route,
                        status=status,
                        duration_ms=round(seconds * 1000, 1),
                        **key,
                    )

    def _route(self, scope: Scope) -> str:
        """The path template of the request's route, also if it was refused before routing, or `unknown`."""
        route = scope.get("route")
        if route is None:
            route = next((each for each in self._routes if each.matches(scope)[0] is Match.FULL), None)
        return getattr(route, "path", "unknown")


def _begin_trace(scope: Scope, request_id: str) -> tracing.Trace:
    """Begin the span of a request, as a child of the client's span if it sends one."""
    if scope["path"] in _UNLOGGED_PATHS:
        return tracing.Trace()
    method: str = scope["method"]
    attributes = {"http.request.method": method, "reeltalk.request.id": request_id}
    return tracing.begin(method, attributes, kind="server", parent=Headers(scope=scope).get("traceparent"))

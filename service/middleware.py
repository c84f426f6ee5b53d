"""Around every request: an id, a log line, a count, a bound. Plain ASGI, so that streams pass untouched."""

import time

import structlog
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.ids import new_id
from service.metrics import Metrics

_log = structlog.get_logger(__name__)
_QUIET = {"/healthz", "/readyz", "/metrics"}


class ObserveRequests:
    """Gives each request an id (`X-Request-Id`), logs and counts its response. No query and no body is logged."""

    def __init__(self, app: ASGIApp, *, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one ASGI scope."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id, status, start = new_id("req"), 500, time.perf_counter()

        async def observed(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["X-Request-Id"] = request_id
            await send(message)

        with structlog.contextvars.bound_contextvars(request_id=request_id):
            try:
                await self._app(scope, receive, observed)
            finally:
                route = getattr(scope.get("route"), "path", "unknown")
                self._metrics.http_requests.labels(scope["method"], route, str(status)).inc()
                if scope["path"] not in _QUIET:
                    caller = scope.get("state", {}).get("caller")
                    asked_by = {} if caller is None or caller.key_id is None else {"key": caller.key_id}
                    _log.info(
                        "request",
                        method=scope["method"],
                        route=route,
                        status=status,
                        ms=round((time.perf_counter() - start) * 1000, 1),
                        **asked_by,
                    )


class LimitBodies:
    """Refuses bodies that grow over `max_bytes`, announced or not, except on the paths that receive files."""

    def __init__(self, app: ASGIApp, *, max_bytes: int, unlimited: frozenset[str]) -> None:
        self._app = app
        self._max_bytes = max_bytes
        self._unlimited = unlimited

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one ASGI scope."""
        if scope["type"] != "http" or scope["path"] in self._unlimited:
            await self._app(scope, receive, send)
            return
        num_bytes = 0

        async def limited() -> Message:
            nonlocal num_bytes
            message = await receive()
            num_bytes += len(message.get("body", b""))
            if num_bytes > self._max_bytes:
                # raised where the body is read, so that it leaves the app like any other refusal
                raise HTTPException(413, f"A body may have at most {self._max_bytes} bytes")
            return message

        await self._app(scope, limited, send)

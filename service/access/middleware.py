"""ASGI middleware that authenticates every request before its body is read."""

from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send
from structlog.contextvars import bind_contextvars

from service.access.authentication import Authentication, required_scope
from service.access.callers import Caller
from service.errors import Forbidden, ServiceError
from service.settings import is_loopback


class RequireKey:
    """Passes a request on with its `Caller` in the ASGI state, or refuses it.

    A service without keys that listens on loopback only accepts requests addressed to loopback, so that a website in
    the user's browser cannot use it. Such a site reaches loopback under a host name of its own (DNS rebinding: the
    `Host` header shows it) or directly (the `Origin` header shows it).
    """

    def __init__(self, app: ASGIApp, *, loopback_only: bool) -> None:
        self._app = app
        self._loopback_only = loopback_only

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one ASGI scope."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        authentication: Authentication = scope["app"].state.service.authentication
        try:
            caller = await self._caller(authentication, scope["path"], Headers(scope=scope))
        except ServiceError as error:
            response = JSONResponse(error.envelope(), status_code=error.status, headers=error.headers())
            await response(scope, receive, send)
            return
        if caller is not None:
            bind_contextvars(tenant=caller.tenant)
            scope.setdefault("state", {})["caller"] = caller
        await self._app(scope, receive, send)

    async def _caller(self, authentication: Authentication, path: str, headers: Headers) -> Caller | None:
        """The caller of a request; None for a public path."""
        is_foreign = self._loopback_only and not _is_addressed_to_loopback(headers)
        scope = required_scope(path)
        if scope is None:
            if is_foreign and await authentication.is_open():
                raise _foreign_host()
            return None
        caller = await authentication.authenticate(headers.get("authorization"), scope)
        if is_foreign and caller.key_id is None:
            raise _foreign_host()
        return caller


def _foreign_host() -> Forbidden:
    return Forbidden("foreign_host", "This service answers only under the names of this machine's loopback address.")


def _is_addressed_to_loopback(headers: Headers) -> bool:
    origin = headers.get("origin")
    names = [urlsplit(f"//{headers.get('host', '')}").hostname]
    if origin is not None:
        names.append(urlsplit(origin).hostname)
    return all(name is not None and is_loopback(name) for name in names)

"""At the door: who asks, before anything else looks at a request. Plain ASGI; `access` knows who may do what."""

from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send
from structlog.contextvars import bind_contextvars

from service.access.callers import Access, Caller, needed
from service.errors import Forbidden, ServiceError
from service.settings import is_loopback


class Gate:
    """Lets a request through to the app with its `Caller` in `state`, or refuses it with its body unread.

    Where nobody has to show a key and the service listens on loopback, it answers only requests that mean this
    machine, so that a web page from elsewhere cannot use the visitor's service. Such a page reaches loopback under a
    name of its own (DNS rebinding: the `Host` tells) or as itself (the `Origin` tells).
    """

    def __init__(self, app: ASGIApp, *, loopback_only: bool) -> None:
        self._app = app
        self._loopback_only = loopback_only

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one ASGI scope."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        try:
            caller = await self._let_in(scope["app"].state.service.access, scope["path"], Headers(scope=scope))
        except ServiceError as error:
            reply = JSONResponse(error.envelope(), status_code=error.status, headers=error.headers())
            await reply(scope, receive, send)
            return
        if caller is not None:
            bind_contextvars(tenant=caller.tenant)
            scope.setdefault("state", {})["caller"] = caller
        await self._app(scope, receive, send)

    async def _let_in(self, access: Access, path: str, headers: Headers) -> Caller | None:
        """Who asks for a path; None where it does not matter."""
        scope = needed(path)
        if scope is None:
            if self._loopback_only and not _means_loopback(headers) and await access.is_open():
                raise _foreign_host()
            return None
        caller = await access.caller(headers.get("authorization"))
        if caller.key_id is None and self._loopback_only and not _means_loopback(headers):
            raise _foreign_host()
        await access.allow(caller, scope)
        return caller


def _foreign_host() -> Forbidden:
    return Forbidden("foreign_host", "This service answers only under the names of this machine's loopback address.")


def _means_loopback(headers: Headers) -> bool:
    origin = headers.get("origin")
    names = [urlsplit(f"//{headers.get('host', '')}").hostname]
    if origin is not None:
        names.append(urlsplit(origin).hostname)
    return all(name is not None and is_loopback(name) for name in names)

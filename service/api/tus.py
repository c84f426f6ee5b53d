"""The parts of the tus protocol, version 1.0.0, that apply to every request and response."""

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

TUS_VERSION = "1.0.0"


class TusProtocol:
    """Middleware for the paths under `path`: honours `X-HTTP-Method-Override` and adds `Tus-Resumable` to responses."""

    def __init__(self, app: ASGIApp, *, path: str) -> None:
        self._app = app
        self._path = path

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one ASGI scope."""
        if scope["type"] != "http" or not (scope["path"] + "/").startswith(f"{self._path}/"):
            await self._app(scope, receive, send)
            return
        method = Headers(scope=scope).get("x-http-method-override", "").upper()
        if scope["method"] == "POST" and method in {"PATCH", "DELETE", "HEAD"}:
            scope = {**scope, "method": method}

        async def versioned(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)["Tus-Resumable"] = TUS_VERSION
            await send(message)

        await self._app(scope, receive, versioned)

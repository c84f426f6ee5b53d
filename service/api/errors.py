"""Errors on their way out: one envelope, whatever raised them, and never the text of an unexpected exception."""

import asyncio
from collections.abc import Sequence
from typing import Any

import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.routing import compile_path
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.api.schemas import ErrorReply
from service.errors import InternalError, InvalidRequest, ServiceError, Unavailable

_log = structlog.get_logger(__name__)

_CODES = {
    "extra_forbidden": "unknown_field",
    "json_invalid": "malformed_json",
    "missing": "missing_field",
    "unsupported_value": "unsupported_value",
}
_CUT_OFF = Unavailable("draining", "This replica stops before it could finish this; send it again.")
_MALFORMED = InvalidRequest("malformed_json", "The body is not JSON.")
_HTTP_CODES = {404: "route_not_found", 405: "method_not_allowed", 413: "body_too_large"}


def install_error_handlers(app: FastAPI) -> None:
    """Let every error leave the app in the envelope."""
    app.add_exception_handler(ServiceError, _service_error)
    app.add_exception_handler(RequestValidationError, _validation_error)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(ClientDisconnect, _disconnected)
    app.add_exception_handler(Exception, _unexpected)


class AnswerWhenCut:
    """Tells the client of a request that is cut off to come again: the server cancels one only when it has to stop."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one ASGI scope."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        has_begun = False

        async def watched(message: Message) -> None:
            nonlocal has_begun
            has_begun = True
            await send(message)

        try:
            await self._app(scope, receive, watched)
        except asyncio.CancelledError:
            if not has_begun:
                await _reply(_CUT_OFF)(scope, receive, send)


def documented(*statuses: int) -> dict[int | str, dict[str, object]]:
    """The `responses` of a route that may fail with these."""
    return {status: {"model": ErrorReply} for status in statuses}


def _reply(error: ServiceError, *, status: int | None = None) -> JSONResponse:
    return JSONResponse(error.envelope(), status_code=status or error.status, headers=error.headers())


async def _service_error(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, ServiceError)
    return _reply(error)


async def _validation_error(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    code = _CODES.get(first["type"], "invalid_value")
    where = _path(first["loc"], error.body)
    if code == "malformed_json":
        return _reply(_MALFORMED)
    return _reply(InvalidRequest(code, f"{first['msg']}.", param=".".join(where) or None))


def _path(loc: Sequence[int | str], body: object) -> list[str]:
    """Where in what was sent an error is, without the names of the validator's own branches on the way there."""
    if loc[0] != "body":
        return [str(part) for part in loc[1:]]
    path: list[str] = []
    value: Any = body
    for place, part in enumerate(loc[1:], start=2):
        if isinstance(value, list) and isinstance(part, int):
            value = value[part]
        elif isinstance(value, dict) and (part in value or place == len(loc)):
            value = value.get(part)
        else:
            continue
        path.append(str(part))
    return path


async def _http_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    if error.status_code == 400:  # the framework's word for a body that is not even text
        return _reply(_MALFORMED)
    code = _HTTP_CODES.get(error.status_code, "http_error")
    reply = _reply(InvalidRequest(code, f"{error.detail}."), status=error.status_code)
    reply.headers.update(error.headers or {})
    if error.status_code == 405:  # the framework names the methods of one route of several on a path
        reply.headers["Allow"] = ", ".join(sorted(_methods(request)))
    return reply


def _methods(request: Request) -> set[str]:
    """What the path of a request may be asked with, by the contract."""
    return {
        method.upper()
        for path, operations in request.app.openapi()["paths"].items()
        if compile_path(path)[0].match(request.url.path)
        for method in operations
    }


async def _disconnected(_: Request, __: Exception) -> JSONResponse:
    # nobody reads this; it gives the log a status
    return _reply(InvalidRequest("client_disconnected", "The connection was closed too early."), status=400)


async def _unexpected(request: Request, error: Exception) -> JSONResponse:
    _log.error("request_failed", path=request.url.path, exc_info=error)
    return _reply(InternalError("internal_error", "Something went wrong on our side."))

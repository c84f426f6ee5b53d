"""Exception handlers: every error leaves the app in one envelope, without the text of unexpected exceptions."""

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
from service.errors import InvalidRequest, ServiceError, Unavailable, from_code, unexpected_error

_log = structlog.get_logger(__name__)

VALIDATION_CODES = {
    "extra_forbidden": "unknown_field",
    "json_invalid": "malformed_json",
    "missing": "missing_field",
    "unsupported_value": "unsupported_value",
}
"""Pydantic's error types and their codes; every other type is an `invalid_value`."""
FRAMEWORK_CODES = {404: "route_not_found", 405: "method_not_allowed", 413: "body_too_large"}
"""The statuses of Starlette's own refusals and their codes; every other status is an `http_error`."""


def install_error_handlers(app: FastAPI) -> None:
    """Register a handler for every kind of error."""
    app.add_exception_handler(ServiceError, _service_error)
    app.add_exception_handler(RequestValidationError, _validation_error)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(ClientDisconnect, _disconnected)
    app.add_exception_handler(Exception, _unexpected)


class ReplyToCancelled:
    """Middleware that replies `draining` to a request that the server cancels, which it does only when it must stop."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one ASGI scope."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        has_begun = False

        async def observed(message: Message) -> None:
            nonlocal has_begun
            has_begun = True
            await send(message)

        try:
            await self._app(scope, receive, observed)
        except asyncio.CancelledError:
            if not has_begun:
                error = Unavailable("draining", "This replica is stopping and could not finish this; send it again.")
                await error_response(error)(scope, receive, send)


def documented(*statuses: int) -> dict[int | str, dict[str, object]]:
    """The `responses` of a route that can fail with these statuses."""
    return {status: {"model": ErrorReply} for status in statuses}


def error_response(error: ServiceError, *, status: int | None = None) -> JSONResponse:
    """The response for an error, with another status than the error's own if one is given."""
    return JSONResponse(error.envelope(), status_code=status or error.status, headers=error.headers())


async def _service_error(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, ServiceError)
    return error_response(error)


async def _validation_error(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    code = VALIDATION_CODES.get(first["type"], "invalid_value")
    path = _field_path(first["loc"], error.body)
    if code == "malformed_json":
        return error_response(_malformed_json())
    message = first["msg"].removeprefix("Value error, ")
    return error_response(InvalidRequest(code, f"{message[:1].upper()}{message[1:]}.", param=".".join(path) or None))


def _malformed_json() -> InvalidRequest:
    return InvalidRequest("malformed_json", "The body is not JSON.")


def _field_path(loc: Sequence[int | str], body: object) -> list[str]:
    """The path of the invalid field in what the client sent, without the names of Pydantic's own union branches."""
    if loc[0] != "body":
        return [str(part) for part in loc[1:]]
    path: list[str] = []
    value: Any = body
    for position, part in enumerate(loc[1:], start=2):
        if isinstance(value, list) and isinstance(part, int):
            value = value[part]
        elif isinstance(value, dict) and (part in value or position == len(loc)):
            value = value.get(part)
        else:
            continue
        path.append(str(part))
    return path


async def _http_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    if error.status_code == 400:  # FastAPI raises this for a body that is not valid UTF-8
        return error_response(_malformed_json())
    code = FRAMEWORK_CODES.get(error.status_code, "http_error")
    response = error_response(from_code(code, f"{error.detail}."), status=error.status_code)
    response.headers.update(error.headers or {})
    if error.status_code == 405:  # Starlette names the methods of one route only, where several share a path
        response.headers["Allow"] = ", ".join(sorted(_allowed_methods(request)))
    return response


def _allowed_methods(request: Request) -> set[str]:
    """The methods that the OpenAPI document has for the request's path."""
    return {
        method.upper()
        for path, operations in request.app.openapi()["paths"].items()
        if compile_path(path)[0].match(request.url.path)
        for method in operations
    }


async def _disconnected(_: Request, __: Exception) -> JSONResponse:
    # The client is gone; this gives the log line a status.
    return error_response(InvalidRequest("client_disconnected", "The connection was closed too early."))


async def _unexpected(request: Request, error: Exception) -> JSONResponse:
    _log.error("request_failed", path=request.url.path, exc_info=error)
    return error_response(unexpected_error())

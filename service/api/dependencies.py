"""Dependencies of the routes: the running service, the caller, pagination, idempotency keys, upload bodies."""

import hashlib
from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Header, Query, Request
from fastapi.security import HTTPBearer

from service.access.authentication import Authentication
from service.access.callers import Caller
from service.answers.admission import Admission
from service.answers.answers import Answers
from service.answers.completions import Completions
from service.answers.questions import Questions
from service.answers.sessions import Sessions
from service.drain import Drain
from service.model_loading import ModelLoading
from service.observability.logging import bind_path_ids
from service.observability.metrics import Metrics
from service.settings import Settings
from service.store.connection import StoreClient
from service.store.idempotency import Repeatable
from service.videos.ingest import Ingest
from service.videos.preparation import Preparation
from service.videos.receiving import UploadBody
from service.videos.resumable import Resumable
from service.workers.pools import Pools


@dataclass(frozen=True, kw_only=True, slots=True)
class Service:
    """The parts of a running replica, built by `service.app`."""

    settings: Settings
    authentication: Authentication
    admission: Admission
    answers: Answers
    completions: Completions
    questions: Questions
    sessions: Sessions
    drain: Drain
    preparation: Preparation
    ingest: Ingest
    resumable: Resumable
    pools: Pools
    model_loading: ModelLoading
    redis: StoreClient
    metrics: Metrics


def _service(request: Request) -> Service:
    service: Service = request.app.state.service
    return service


def _caller(request: Request) -> Caller:
    caller: Caller = request.state.caller  # set by the authentication middleware
    return caller


def _tenant(request: Request) -> str:
    return _caller(request).tenant


IdempotencyKey = Annotated[
    str | None,
    Header(
        min_length=1,
        max_length=255,
        pattern=r"^[\x21-\x7e]+$",
        description="A key that you choose for this request. Sent again with the same key, it is not executed twice.",
    ),
]


async def _repeatable(request: Request, idempotency_key: IdempotencyKey = None) -> Repeatable | None:
    if idempotency_key is None:
        return None
    body_sha256 = hashlib.sha256(await request.body()).hexdigest()
    return Repeatable.of(idempotency_key, method=request.method, path=request.url.path, body_sha256=body_sha256)


async def _log_ids(request: Request) -> None:
    bind_path_ids(request.path_params)


BINARY = {"type": "string", "format": "binary"}


def upload_form(**fields: dict[str, object]) -> dict[str, object]:
    """The OpenAPI schema of a form with a file and these fields, all of them required."""
    schema = {
        "type": "object",
        "required": ["file", *fields],
        "properties": {"file": BINARY, **fields},
        "additionalProperties": False,
    }
    return {"multipart/form-data": {"schema": schema}}


def upload_body(request: Request, *, filename: str | None = None, purposes: frozenset[str] | None = None) -> UploadBody:
    """The request's body as a stream, with the facts from its headers."""
    length = request.headers.get("content-length", "")
    return UploadBody(
        chunks=request.stream(),
        content_type=request.headers.get("content-type", ""),
        content_length=int(length) if length.isdecimal() else None,
        filename=filename,
        purposes=purposes,
    )


LOGGED = Depends(_log_ids)
"""Adds the ids in a request's path to its log lines."""
BEARER = Depends(HTTPBearer(scheme_name="API key", description="`reeltalk keys add` creates one.", auto_error=False))
"""Documents that a key is required; the middleware in `service.access` checks it."""
RepeatableDep = Annotated[Repeatable | None, Depends(_repeatable)]
ServiceDep = Annotated[Service, Depends(_service)]
CallerDep = Annotated[Caller, Depends(_caller)]
TenantDep = Annotated[str, Depends(_tenant)]
LimitQuery = Annotated[int, Query(ge=1, le=100, description="Maximum number of items in a page.")]
AfterQuery = Annotated[str | None, Query(max_length=64, description="The page begins after the item with this id.")]
EVENT_NUMBER = Query(ge=0, le=2**53, description="The number of the last event that was received.")

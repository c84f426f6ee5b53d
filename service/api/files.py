"""`/v1/files`: videos in the form of OpenAI's files. A file and its id are a video and its id under other names."""

from typing import Annotated

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import FileResponse

from service.api import videos
from service.api.dependencies import (
    AfterQuery,
    CallerDep,
    IdempotencyKey,
    ServiceDep,
    TenantDep,
    upload_body,
    upload_form,
)
from service.api.errors import documented
from service.api.file_schemas import File, FileDeleted, FileId, FileList
from service.ids import file_id as named
from service.ids import video_id_of
from service.store.listing import Order

router = APIRouter(prefix="/v1/files", tags=["OpenAI"])

_PURPOSE = "user_data"
_UPLOAD = {"requestBody": {"required": True, "content": upload_form(purpose={"const": _PURPOSE})}}


@router.post("", responses=documented(408, 413, 415, 422, 500, 503), openapi_extra=_UPLOAD)
async def upload_file(
    request: Request, service: ServiceDep, caller: CallerDep, idempotency_key: IdempotencyKey = None
) -> File:
    """Upload a video for later questions. Uploading the same bytes again returns the same file."""
    body = upload_body(request, purposes=frozenset({_PURPOSE}))
    record, _ = await service.ingest.receive(caller, body, idempotency_key=idempotency_key)
    return File.of(record)


@router.get("", responses=documented(422, 503))
async def list_files(
    *,
    service: ServiceDep,
    tenant: TenantDep,
    purpose: Annotated[str, Query(max_length=64, description=f"Every file has the purpose `{_PURPOSE}`.")] = _PURPOSE,
    limit: Annotated[int, Query(ge=1, le=1000, description="Maximum number of items in a page.")] = 100,
    order: Annotated[Order, Query(description="`desc` lists the newest first, `asc` the oldest.")] = "desc",
    after: AfterQuery = None,
) -> FileList:
    """List all videos, as files."""
    if purpose != _PURPOSE:
        return FileList(data=[], first_id=None, last_id=None, has_more=False)
    start = None if after is None else video_id_of(after)
    records, page = await service.ingest.page(tenant, limit=limit, after=start, order=order)
    ids = [named(record.id) for record in records]
    return FileList(
        data=[File.of(record) for record in records],
        first_id=ids[0] if ids else None,
        last_id=ids[-1] if ids else None,
        has_more=page.has_more,
    )


@router.get("/{file_id}", responses=documented(404, 422, 503))
async def get_file(service: ServiceDep, tenant: TenantDep, file_id: FileId) -> File:
    """Get a file and the status of its preparation."""
    return File.of(await service.ingest.get(tenant, _video(file_id)))


@router.get("/{file_id}/content", response_class=FileResponse, responses=documented(404, 410, 422, 503))
async def get_file_content(request: Request, service: ServiceDep, tenant: TenantDep, file_id: FileId) -> Response:
    """Download the bytes as they were uploaded."""
    return await videos.get_content(request, service, tenant, _video(file_id))


@router.delete("/{file_id}", responses=documented(404, 422, 503))
async def delete_file(service: ServiceDep, tenant: TenantDep, file_id: FileId) -> FileDeleted:
    """Delete a file: the video with its features, and every session about it."""
    await videos.delete_video(service, tenant, _video(file_id))
    return FileDeleted(id=file_id)


def _video(file_id: str) -> str:
    video_id = video_id_of(file_id)
    assert video_id is not None, "the pattern of the path parameter ensures this"
    return video_id

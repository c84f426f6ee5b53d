"""`/v1/videos`: upload and delete videos, follow their preparation, download files and frames."""

from typing import Annotated

from fastapi import APIRouter, Header, Path, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, StreamingResponse
from pydantic import ValidationError

from service.api.dependencies import (
    BINARY,
    EVENT_NUMBER,
    AfterQuery,
    CallerDep,
    IdempotencyKey,
    LimitQuery,
    ServiceDep,
    TenantDep,
    upload_body,
    upload_form,
)
from service.api.errors import documented
from service.api.schemas import Deleted, Video, VideoByUrl, VideoId, VideoList
from service.api.sse import event_stream
from service.errors import TooLarge
from service.store.media import RemoteContent

router = APIRouter(prefix="/v1/videos", tags=["videos"])

_MAX_DOCUMENT = 16 * 1024
_UNTRUSTED = {"X-Content-Type-Options": "nosniff", "Content-Security-Policy": "sandbox; default-src 'none'"}
_UPLOAD = {
    "requestBody": {
        "required": True,
        "content": {
            **upload_form(),
            "video/*": {"schema": BINARY},
            "application/json": {"schema": VideoByUrl.model_json_schema()},
        },
    }
}
_EXISTING: dict[int | str, dict[str, object]] = {
    200: {"model": Video, "description": "A video with these bytes exists."}
}
_PICTURE: dict[int | str, dict[str, object]] = {200: {"content": {"image/jpeg": {}}}}
_EVENTS: dict[int | str, dict[str, object]] = {
    200: {
        "description": "Events `decode`, `encode` {video_id, fraction}; finally `ready`, or `failed` with an error.",
        "content": {"text/event-stream": {"schema": {"type": "string"}}},
    }
}


@router.post(
    "",
    status_code=201,
    responses=_EXISTING | documented(403, 408, 413, 415, 422, 500, 503),
    openapi_extra=_UPLOAD,
)
async def upload_video(
    *,
    request: Request,
    response: Response,
    service: ServiceDep,
    caller: CallerDep,
    filename: Annotated[str | None, Query(max_length=1024, description="The file name of a raw body.")] = None,
    idempotency_key: IdempotencyKey = None,
) -> Video:
    """Upload a video as the field `file` of a form, as the raw body, or by its URL; its preparation begins."""
    body = upload_body(request, filename=filename)
    if body.content_type.partition(";")[0].strip().lower() == "application/json":
        record, is_new = await service.ingest.fetch(caller, (await _video_by_url(request)).url)
    else:
        record, is_new = await service.ingest.receive(caller, body, idempotency_key=idempotency_key)
    response.status_code = 201 if is_new else 200
    response.headers["Location"] = f"/v1/videos/{record.id}"
    return Video.of(record)


async def _video_by_url(request: Request) -> VideoByUrl:
    """The JSON body of an upload. It is read here because the body of this route can also be a file."""
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > _MAX_DOCUMENT:
            raise TooLarge("body_too_large", f"A JSON body here may have at most {_MAX_DOCUMENT} bytes.")
    try:
        return VideoByUrl.model_validate_json(bytes(body))
    except ValidationError as error:
        found = [{**each, "loc": ("body", *each["loc"])} for each in error.errors(include_url=False)]
        raise RequestValidationError(found) from None


@router.get("", responses=documented(422, 503))
async def list_videos(
    service: ServiceDep, tenant: TenantDep, limit: LimitQuery = 20, after: AfterQuery = None
) -> VideoList:
    """List videos, newest first."""
    records, page = await service.ingest.page(tenant, limit=limit, after=after)
    return VideoList(data=[Video.of(record) for record in records], has_more=page.has_more)


@router.get("/{video_id}", responses=documented(404, 422, 503))
async def get_video(
    service: ServiceDep,
    tenant: TenantDep,
    video_id: VideoId,
    model: Annotated[
        str | None, Query(max_length=200, description="Show the status and frames of this model's features.")
    ] = None,
) -> Video:
    """Get a video and the status of its preparation for the default model, or for another one."""
    record = await service.ingest.get(tenant, video_id)
    if model is not None:
        record = await service.preparation.view(tenant, record, model=model)
    return Video.of(record)


@router.delete("/{video_id}", responses=documented(404, 422, 503))
async def delete_video(service: ServiceDep, tenant: TenantDep, video_id: VideoId) -> Deleted:
    """Delete a video: its file, its features, and every session about it."""
    await service.sessions.erase_about(tenant, video_id)
    await service.ingest.erase(tenant, video_id)
    return Deleted(id=video_id, object="video")


@router.get("/{video_id}/events", response_class=StreamingResponse, responses=_EVENTS | documented(404, 422, 503))
async def follow_video(
    service: ServiceDep,
    tenant: TenantDep,
    video_id: VideoId,
    last_event_id: Annotated[int, Header(ge=0, le=2**53)] = 0,
    after: Annotated[int, EVENT_NUMBER] = 0,
) -> StreamingResponse:
    """Stream a video's preparation as Server-Sent Events."""
    await service.ingest.get(tenant, video_id)
    return event_stream(service.ingest.follow(tenant, video_id, after=max(after, last_event_id)))


@router.get("/{video_id}/content", response_class=FileResponse, responses=documented(404, 410, 422, 503))
async def get_content(request: Request, service: ServiceDep, tenant: TenantDep, video_id: VideoId) -> Response:
    """Download the uploaded file; `Range` requests are supported."""
    record = await service.ingest.get(tenant, video_id)
    found = await service.ingest.content(tenant, record, byte_range=request.headers.get("range"))
    kind = record.content_type if record.content_type.startswith("video/") else "application/octet-stream"
    if isinstance(found, RemoteContent):
        headers = found.headers | _UNTRUSTED
        return StreamingResponse(found.chunks, status_code=found.status, media_type=kind, headers=headers)
    return FileResponse(found, media_type=kind, headers=_UNTRUSTED)


@router.get("/{video_id}/frames/{index}.jpg", response_class=Response, responses=_PICTURE | documented(404, 422, 503))
async def get_frame(
    service: ServiceDep, tenant: TenantDep, video_id: VideoId, index: Annotated[int, Path(ge=0, le=1023)]
) -> Response:
    """Get a thumbnail of one of the frames that the model sees."""
    record = await service.ingest.get(tenant, video_id)
    picture = await service.ingest.frame(tenant, record, index)
    return Response(picture, media_type="image/jpeg", headers={"Cache-Control": "private, max-age=3600"})

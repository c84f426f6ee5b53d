"""`/v1/uploads`: resumable uploads by the tus protocol, version 1.0.0 (https://tus.io/protocols/resumable-upload)."""

import base64
import binascii
from email.utils import formatdate
from typing import Annotated, Literal, cast

from fastapi import APIRouter, Depends, Header, Request, Response
from pydantic import StringConstraints

from service.api.dependencies import CallerDep, ServiceDep, TenantDep
from service.api.errors import documented
from service.api.middleware import TUS_VERSION
from service.errors import InvalidRequest, PreconditionFailed, UnsupportedMedia
from service.store.records import UploadRecord
from service.videos.receiving import UploadHeader, header_of
from service.videos.resumable import Checksum

_ALGORITHMS = ("sha1", "sha256")
_EXTENSIONS = ("creation", "creation-with-upload", "expiration", "checksum", "termination")
_PIECE = "application/offset+octet-stream"
_MAX_LENGTH = 2**53

UploadId = Annotated[str, StringConstraints(pattern=r"^upl_[0-9a-f]{32}$")]
_Length = Annotated[int, Header(ge=1, le=_MAX_LENGTH, description="Bytes of the whole file.")]
_Offset = Annotated[int, Header(ge=0, le=_MAX_LENGTH, description="Where the piece begins.")]
_Metadata = Annotated[
    str, Header(max_length=8192, description="`filename` and `filetype`, each followed by its value in base64.")
]
_Sum = Annotated[
    str | None, Header(pattern=r"^(sha1|sha256) [0-9A-Za-z+/]{1,90}={0,2}$", description="Algorithm and base64 digest.")
]


async def _speaks_tus(
    tus_resumable: Annotated[
        str, Header(description="The version of the protocol.", json_schema_extra={"enum": [TUS_VERSION]})
    ],
) -> None:
    if tus_resumable != TUS_VERSION:
        raise PreconditionFailed(
            "unsupported_version", f"Send `Tus-Resumable: {TUS_VERSION}` with every request.", param="Tus-Resumable"
        )


router = APIRouter(prefix="/v1/uploads", tags=["uploads"])
_TUS = [Depends(_speaks_tus)]


def _headers(*names: str) -> dict[str, object]:
    return {name: {"schema": {"type": "string"}} for name in names}


_BODY = {"requestBody": {"content": {_PIECE: {"schema": {"type": "string", "format": "binary"}}}}}
_CREATED: dict[int | str, dict[str, object]] = {
    201: {"headers": _headers("Location", "Upload-Offset", "Upload-Expires", "Reeltalk-Video-Id")}
}
_STATE: dict[int | str, dict[str, object]] = {
    200: {
        "headers": _headers("Upload-Offset", "Upload-Length", "Upload-Metadata", "Upload-Expires", "Reeltalk-Video-Id")
    }
}
_TAKEN: dict[int | str, dict[str, object]] = {
    204: {"headers": _headers("Upload-Offset", "Upload-Expires", "Reeltalk-Video-Id")}
}
_ABILITIES: dict[int | str, dict[str, object]] = {
    204: {"headers": _headers("Tus-Version", "Tus-Extension", "Tus-Max-Size", "Tus-Checksum-Algorithm")}
}


@router.options("", status_code=204, responses=_ABILITIES)
async def tus_abilities(service: ServiceDep) -> Response:
    """What of the protocol is spoken here."""
    return Response(
        status_code=204,
        headers={
            "Tus-Version": TUS_VERSION,
            "Tus-Extension": ",".join(_EXTENSIONS),
            "Tus-Max-Size": str(service.settings.max_upload_bytes),
            "Tus-Checksum-Algorithm": ",".join(_ALGORITHMS),
        },
    )


@router.post(
    "",
    status_code=201,
    dependencies=_TUS,
    response_class=Response,
    responses=_CREATED | documented(408, 412, 413, 415, 422, 460, 500, 503),
    openapi_extra=_BODY,
)
async def create_upload(
    *,
    request: Request,
    service: ServiceDep,
    caller: CallerDep,
    upload_length: _Length,
    upload_metadata: _Metadata = "",
    upload_checksum: _Sum = None,
) -> Response:
    """Begin an upload; its first bytes may come along as the body."""
    kind = request.headers.get("content-type")
    checksum = _checksum(upload_checksum)
    record = await service.resumable.create(
        caller, length=upload_length, header=_described(upload_metadata), metadata=upload_metadata
    )
    if kind is not None and kind.partition(";")[0].strip().lower() == _PIECE:
        record = await service.resumable.append(caller, record.id, request.stream(), offset=0, checksum=checksum)
    return Response(status_code=201, headers=_told(record) | {"Location": f"/v1/uploads/{record.id}"})


@router.head(
    "/{upload_id}",
    dependencies=_TUS,
    response_class=Response,
    responses=_STATE | documented(404, 410, 412, 415, 422, 500, 503),
)
async def get_upload(service: ServiceDep, caller: CallerDep, upload_id: UploadId) -> Response:
    """How far an upload is, and once it is whole, which video it has become."""
    record = await service.resumable.get(caller, upload_id)
    state = {"Upload-Length": str(record.length), "Cache-Control": "no-store"}
    if record.metadata:
        state["Upload-Metadata"] = record.metadata
    return Response(headers=_told(record) | state)


@router.patch(
    "/{upload_id}",
    status_code=204,
    dependencies=_TUS,
    response_class=Response,
    responses=_TAKEN | documented(404, 408, 409, 410, 412, 413, 415, 422, 423, 460, 500, 503),
    openapi_extra={"requestBody": {"required": True, **_BODY["requestBody"]}},
)
async def append_to_upload(
    *,
    request: Request,
    service: ServiceDep,
    caller: CallerDep,
    upload_id: UploadId,
    upload_offset: _Offset,
    upload_checksum: _Sum = None,
) -> Response:
    """Add a piece. With the last one the file becomes a video, by the same checks as any."""
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != _PIECE:
        raise UnsupportedMedia("unsupported_media_type", f"Send the piece with the content type {_PIECE}.")
    record = await service.resumable.append(
        caller, upload_id, request.stream(), offset=upload_offset, checksum=_checksum(upload_checksum)
    )
    return Response(status_code=204, headers=_told(record))


@router.delete(
    "/{upload_id}",
    status_code=204,
    dependencies=_TUS,
    response_class=Response,
    responses=documented(404, 412, 422, 503),
)
async def terminate_upload(service: ServiceDep, tenant: TenantDep, upload_id: UploadId) -> Response:
    """End an upload. The video of a whole one stays."""
    await service.resumable.terminate(tenant, upload_id)
    return Response(status_code=204)


def _told(record: UploadRecord) -> dict[str, str]:
    told = {"Upload-Offset": str(record.offset), "Upload-Expires": formatdate(record.expires_at, usegmt=True)}
    if record.video_id is not None:
        told["Reeltalk-Video-Id"] = record.video_id
    return told


def _described(metadata: str) -> UploadHeader:
    """What the client says of its file. Other keys are kept for the client, and mean nothing here."""
    said: dict[str, str] = {}
    for pair in filter(None, (pair.strip() for pair in metadata.split(","))):
        key, _, value = pair.partition(" ")
        try:
            said[key] = base64.b64decode(value, validate=True).decode()
        except (binascii.Error, UnicodeError):
            raise InvalidRequest(
                "invalid_value", "Every value of the metadata is base64 of UTF-8.", param="Upload-Metadata"
            ) from None
    return header_of(said.get("filename"), said.get("filetype", ""))


def _checksum(said: str | None) -> Checksum | None:
    if said is None:
        return None
    algorithm, _, digest = said.partition(" ")
    try:
        return Checksum(cast("Literal['sha1', 'sha256']", algorithm), base64.b64decode(digest, validate=True))
    except binascii.Error:
        raise InvalidRequest("invalid_value", "The checksum is not base64.", param="Upload-Checksum") from None

"""`/v1/uploads`: resumable uploads by the tus protocol, version 1.0.0 (https://tus.io/protocols/resumable-upload)."""

import base64
import binascii
from email.utils import formatdate
from typing import Annotated, Literal, cast

from fastapi import APIRouter, Depends, Header, Request, Response
from pydantic import StringConstraints

from service.api.dependencies import CallerDep, ServiceDep, TenantDep
from service.api.errors import documented
from service.api.tus import TUS_VERSION
from service.errors import InvalidRequest, PreconditionFailed, UnsupportedMedia
from service.store.records import UploadRecord
from service.videos.receiving import UploadHeader, header_of
from service.videos.resumable import Checksum

_ALGORITHMS = ("sha1", "sha256")
_EXTENSIONS = ("creation", "creation-with-upload", "expiration", "checksum", "termination")
_CHUNK_TYPE = "application/offset+octet-stream"
_MAX_LENGTH = 2**53

UploadId = Annotated[str, StringConstraints(pattern=r"^upl_[0-9a-f]{32}$")]
_Length = Annotated[int, Header(ge=1, le=_MAX_LENGTH, description="Size of the whole file in bytes.")]
_Offset = Annotated[int, Header(ge=0, le=_MAX_LENGTH, description="The offset of the first byte of this chunk.")]
_Metadata = Annotated[
    str, Header(max_length=8192, description="`filename` and `filetype`, each followed by its value in base64.")
]
_ChecksumHeader = Annotated[
    str | None, Header(pattern=r"^(sha1|sha256) [0-9A-Za-z+/]{1,90}={0,2}$", description="Algorithm and base64 digest.")
]


async def _require_tus(
    tus_resumable: Annotated[
        str, Header(description="The version of the protocol.", json_schema_extra={"enum": [TUS_VERSION]})
    ],
) -> None:
    if tus_resumable != TUS_VERSION:
        raise PreconditionFailed(
            "unsupported_version", f"Send `Tus-Resumable: {TUS_VERSION}` with every request.", param="Tus-Resumable"
        )


router = APIRouter(prefix="/v1/uploads", tags=["uploads"])
_TUS = [Depends(_require_tus)]


def _headers(*names: str) -> dict[str, object]:
    return {name: {"schema": {"type": "string"}} for name in names}


_BODY = {"requestBody": {"content": {_CHUNK_TYPE: {"schema": {"type": "string", "format": "binary"}}}}}
_CREATED: dict[int | str, dict[str, object]] = {
    201: {"headers": _headers("Location", "Upload-Offset", "Upload-Expires", "Reeltalk-Video-Id")}
}
_STATE: dict[int | str, dict[str, object]] = {
    200: {
        "headers": _headers("Upload-Offset", "Upload-Length", "Upload-Metadata", "Upload-Expires", "Reeltalk-Video-Id")
    }
}
_APPENDED: dict[int | str, dict[str, object]] = {
    204: {"headers": _headers("Upload-Offset", "Upload-Expires", "Reeltalk-Video-Id")}
}
_OPTIONS: dict[int | str, dict[str, object]] = {
    204: {"headers": _headers("Tus-Version", "Tus-Extension", "Tus-Max-Size", "Tus-Checksum-Algorithm")}
}


@router.options("", status_code=204, responses=_OPTIONS)
async def tus_abilities(service: ServiceDep) -> Response:
    """List the supported parts of the protocol."""
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
    upload_checksum: _ChecksumHeader = None,
) -> Response:
    """Create an upload; the body may contain its first bytes."""
    kind = request.headers.get("content-type")
    checksum = _checksum(upload_checksum)
    record = await service.resumable.create(
        caller, length=upload_length, header=_header_of_metadata(upload_metadata), metadata=upload_metadata
    )
    if kind is not None and kind.partition(";")[0].strip().lower() == _CHUNK_TYPE:
        record = await service.resumable.append(caller, record.id, request.stream(), offset=0, checksum=checksum)
    return Response(status_code=201, headers=_upload_headers(record) | {"Location": f"/v1/uploads/{record.id}"})


@router.head(
    "/{upload_id}",
    dependencies=_TUS,
    response_class=Response,
    responses=_STATE | documented(404, 410, 412, 415, 422, 500, 503),
)
async def get_upload(service: ServiceDep, caller: CallerDep, upload_id: UploadId) -> Response:
    """Get the offset of an upload and, when it is complete, the id of its video."""
    record = await service.resumable.get(caller, upload_id)
    state = {"Upload-Length": str(record.length), "Cache-Control": "no-store"}
    if record.metadata:
        state["Upload-Metadata"] = record.metadata
    return Response(headers=_upload_headers(record) | state)


@router.patch(
    "/{upload_id}",
    status_code=204,
    dependencies=_TUS,
    response_class=Response,
    responses=_APPENDED | documented(404, 408, 409, 410, 412, 413, 415, 422, 423, 460, 500, 503),
    openapi_extra={"requestBody": {"required": True, **_BODY["requestBody"]}},
)
async def append_to_upload(
    *,
    request: Request,
    service: ServiceDep,
    caller: CallerDep,
    upload_id: UploadId,
    upload_offset: _Offset,
    upload_checksum: _ChecksumHeader = None,
) -> Response:
    """Append a chunk. After the last one the file is checked and becomes a video, like any other upload."""
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != _CHUNK_TYPE:
        raise UnsupportedMedia("unsupported_media_type", f"Send the chunk with the content type {_CHUNK_TYPE}.")
    record = await service.resumable.append(
        caller, upload_id, request.stream(), offset=upload_offset, checksum=_checksum(upload_checksum)
    )
    return Response(status_code=204, headers=_upload_headers(record))


@router.delete(
    "/{upload_id}",
    status_code=204,
    dependencies=_TUS,
    response_class=Response,
    responses=documented(404, 412, 422, 503),
)
async def terminate_upload(service: ServiceDep, tenant: TenantDep, upload_id: UploadId) -> Response:
    """Terminate an upload. If it is complete, its video remains."""
    await service.resumable.terminate(tenant, upload_id)
    return Response(status_code=204)


def _upload_headers(record: UploadRecord) -> dict[str, str]:
    headers = {"Upload-Offset": str(record.offset), "Upload-Expires": formatdate(record.expires_at, usegmt=True)}
    if record.video_id is not None:
        headers["Reeltalk-Video-Id"] = record.video_id
    return headers


def _header_of_metadata(metadata: str) -> UploadHeader:
    """The file name and type in `Upload-Metadata`. Other keys are stored for the client and ignored here."""
    values: dict[str, str] = {}
    for pair in filter(None, (pair.strip() for pair in metadata.split(","))):
        key, _, value = pair.partition(" ")
        try:
            values[key] = base64.b64decode(value, validate=True).decode()
        except (binascii.Error, UnicodeError):
            raise InvalidRequest(
                "invalid_value", "Every metadata value must be UTF-8 in base64.", param="Upload-Metadata"
            ) from None
    return header_of(values.get("filename"), values.get("filetype", ""))


def _checksum(header: str | None) -> Checksum | None:
    if header is None:
        return None
    algorithm, _, digest = header.partition(" ")
    try:
        return Checksum(cast("Literal['sha1', 'sha256']", algorithm), base64.b64decode(digest, validate=True))
    except binascii.Error:
        raise InvalidRequest("invalid_value", "The checksum is not base64.", param="Upload-Checksum") from None

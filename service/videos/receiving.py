"""Receiving an upload: a raw body or a multipart form, in constant memory, into a spool file."""

import asyncio
import re
from collections.abc import AsyncIterator
from dataclasses import dataclass

from multipart import MultipartError, MultipartSegment, PushMultipartParser, parse_options_header

from service.errors import InvalidRequest, Stalled, TooLarge, UnsupportedMedia
from service.store.media import SpoolFile

_FORM = "multipart/form-data"
_FORM_OVERHEAD = 64 * 1024  # headers and boundaries around the file
_MAX_PURPOSE = 64
_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f/\\]+")
_VIDEO_TYPE = re.compile(r"video/[a-z0-9!#$&^_.+-]{1,100}")  # RFC 6838: it becomes a header when the file is served
UNNAMED = "video"
"""The name of a file that came without one."""


@dataclass(frozen=True, kw_only=True, slots=True)
class UploadHeader:
    """What the client says of the file it sends. The name is for people; nothing is ever opened by it."""

    filename: str
    content_type: str


@dataclass(frozen=True, kw_only=True, slots=True)
class UploadBody:
    """A body with a file in it, raw or in a form, and what is said of it beforehand."""

    chunks: AsyncIterator[bytes]
    content_type: str
    content_length: int | None = None
    filename: str | None = None
    """Of a raw body; a form names its own."""
    purposes: frozenset[str] | None = None
    """Where they are given it has to be a form, which names one of them."""


def check_headers(body: UploadBody, *, max_bytes: int) -> None:
    """Refuse before the body is read what its headers already rule out.

    Raises:
        TooLarge: more bytes are announced than are taken.
        UnsupportedMedia: neither a form nor a video.
    """
    if (body.content_length or 0) > max_bytes + _FORM_OVERHEAD:
        raise _too_large(max_bytes)
    kind = parse_options_header(body.content_type)[0]
    if not (kind == _FORM or kind.startswith("video/") or kind == "application/octet-stream"):
        raise UnsupportedMedia(
            "unsupported_media_type",
            "Send the video as the field `file` of a multipart form, or as the body with a `video/*` content type.",
        )


async def receive(body: UploadBody, spool: SpoolFile, *, max_bytes: int, idle_timeout: float) -> UploadHeader:
    """Write the file in a body to the spool.

    Raises:
        InvalidRequest: the body is empty or not a proper form.
        Stalled: the client stopped sending.
        TooLarge: more than `max_bytes` arrived.
    """
    kind, options = parse_options_header(body.content_type)
    chunks = paced(body.chunks, idle_timeout=idle_timeout)
    if kind == _FORM or body.purposes is not None:
        boundary = options.get("boundary", "")
        header = await _receive_form(chunks, spool, boundary=boundary, max_bytes=max_bytes, purposes=body.purposes)
    else:
        header = header_of(body.filename, kind)
        async for chunk in chunks:
            _write(spool, chunk, max_bytes=max_bytes)
    if spool.num_bytes == 0:
        raise InvalidRequest("empty_upload", "The upload has no bytes.", param="file")
    return header


async def paced(chunks: AsyncIterator[bytes], *, idle_timeout: float) -> AsyncIterator[bytes]:
    """The chunks, unless one is too long in coming: whoever has stopped sending must not keep others out.

    Raises:
        Stalled: one was.
    """
    source = aiter(chunks)
    while True:
        try:
            async with asyncio.timeout(idle_timeout):
                chunk = await anext(source)
        except StopAsyncIteration:
            return
        except TimeoutError:
            raise Stalled("upload_stalled", f"Nothing came for {idle_timeout:g} seconds.") from None
        yield chunk


def header_of(filename: str | None, content_type: str) -> UploadHeader:
    """What a client says of its file, made fit to be shown and kept."""
    return UploadHeader(filename=_clean(filename), content_type=_media_type(content_type))


async def _receive_form(
    chunks: AsyncIterator[bytes],
    spool: SpoolFile,
    *,
    boundary: str,
    max_bytes: int,
    purposes: frozenset[str] | None,
) -> UploadHeader:
    header: UploadHeader | None = None
    names = ("file",) if purposes is None else ("file", "purpose")
    seen: set[str] = set()
    inside: str | None = None
    purpose = bytearray()
    num_bytes = 0
    try:
        # not `strict`: that refuses the form's last line break when it comes in a packet of its own
        parser = PushMultipartParser(boundary, max_segment_count=16)
        async for chunk in chunks:
            if not chunk:
                continue
            num_bytes += len(chunk)
            if num_bytes > max_bytes + _FORM_OVERHEAD:
                raise _too_large(max_bytes)
            for event in parser.parse(chunk):
                if isinstance(event, MultipartSegment):
                    inside = _field(event.name, names=names, seen=seen)
                    if inside == "file":
                        header = header_of(event.filename, event.content_type or "")
                elif event is None:
                    inside = None
                elif inside == "file":
                    _write(spool, bytes(event), max_bytes=max_bytes)
                elif inside == "purpose":
                    purpose += event[:_MAX_PURPOSE]
        parser.close()
    except MultipartError:
        raise InvalidRequest("malformed_form", "The multipart form is malformed or incomplete.") from None
    if header is None:
        raise InvalidRequest("missing_file", "The form has no field `file`.", param="file")
    if purposes is not None:
        _check_purpose(bytes(purpose), purposes)
    return header


def _field(name: str, *, names: tuple[str, ...], seen: set[str]) -> str:
    """Take note of a field; each may come once."""
    if name not in names:
        known = " and ".join(f"`{name}`" for name in names)
        raise InvalidRequest("unknown_field", f"The form takes {known}, and no other field.", param=_clean(name))
    if name in seen:
        raise InvalidRequest("duplicate_field", f"The form has more than one field `{name}`.", param=name)
    seen.add(name)
    return name


def _check_purpose(purpose: bytes, purposes: frozenset[str]) -> None:
    if not purpose:
        raise InvalidRequest("missing_field", "The form has no field `purpose`.", param="purpose")
    if purpose.decode("utf-8", "replace") not in purposes:
        allowed = ", ".join(f"`{purpose}`" for purpose in sorted(purposes))
        raise InvalidRequest("invalid_value", f"This server takes files for {allowed} alone.", param="purpose")


def _write(spool: SpoolFile, chunk: bytes, *, max_bytes: int) -> None:
    if spool.num_bytes + len(chunk) > max_bytes:
        raise _too_large(max_bytes)
    spool.write(chunk)


def _clean(filename: str | None) -> str:
    """A name fit to be shown: no directories, no control characters, bounded."""
    parts = [part for part in _UNPRINTABLE.split(filename or "") if part.strip(". ")]
    return parts[-1][-255:] if parts else UNNAMED


def _media_type(said: str) -> str:
    """What a client says that its file is, without parameters; anything but a proper video type is unknown."""
    kind = said.partition(";")[0].strip().lower()
    return kind if _VIDEO_TYPE.fullmatch(kind) else "application/octet-stream"


def _too_large(max_bytes: int) -> TooLarge:
    return TooLarge("upload_too_large", f"An upload may have at most {max_bytes} bytes.", param="file")

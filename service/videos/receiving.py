"""Receives an upload, a raw body or a multipart form, into a spool file, in constant memory."""

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
"""The name of a file that is uploaded without one."""


@dataclass(frozen=True, kw_only=True, slots=True)
class UploadHeader:
    """The client's name and type for its file. The name is shown to people; no file is ever opened by it."""

    filename: str
    content_type: str


@dataclass(frozen=True, kw_only=True, slots=True)
class UploadBody:
    """The body of an upload, raw or a form, and what its headers say."""

    chunks: AsyncIterator[bytes]
    content_type: str
    content_length: int | None = None
    filename: str | None = None
    """Of a raw body; a form has a name of its own."""
    purposes: frozenset[str] | None = None
    """If given, the body must be a form with one of these values in the field `purpose`."""


def check_headers(body: UploadBody, *, max_bytes: int) -> None:
    """Check the headers of an upload before its body is read.

    Raises:
        TooLarge: the announced length exceeds the limit.
        UnsupportedMedia: the content type is neither a form nor a video.
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
    """Write the file of a body to the spool file; returns its name and type.

    Raises:
        InvalidRequest: the body is empty or not a valid form.
        Stalled: the client sent nothing for `idle_timeout` seconds.
        TooLarge: more than `max_bytes` arrived.
    """
    kind, options = parse_options_header(body.content_type)
    chunks = with_idle_timeout(body.chunks, idle_timeout)
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


async def with_idle_timeout(chunks: AsyncIterator[bytes], idle_timeout: float) -> AsyncIterator[bytes]:
    """Yield the chunks, so that a client that stops sending does not hold its slot.

    Raises:
        Stalled: a chunk took longer than `idle_timeout` seconds.
    """
    source = aiter(chunks)
    while True:
        try:
            async with asyncio.timeout(idle_timeout):
                chunk = await anext(source)
        except StopAsyncIteration:
            return
        except TimeoutError:
            raise Stalled("upload_stalled", f"The upload sent nothing for {idle_timeout:g} seconds.") from None
        yield chunk


def header_of(filename: str | None, content_type: str) -> UploadHeader:
    """Return a client's name and type for its file, sanitised."""
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
        # not `strict`: that refuses a form whose last line break arrives in a packet of its own
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
    """Check the name of a field, which may occur once."""
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
        raise InvalidRequest("invalid_value", f"This server only takes files for {allowed}.", param="purpose")


def _write(spool: SpoolFile, chunk: bytes, *, max_bytes: int) -> None:
    if spool.num_bytes + len(chunk) > max_bytes:
        raise _too_large(max_bytes)
    spool.write(chunk)


def _clean(filename: str | None) -> str:
    """Return a filename without directories and control characters, of bounded length."""
    parts = [part for part in _UNPRINTABLE.split(filename or "") if part.strip(". ")]
    return parts[-1][-255:] if parts else UNNAMED


def _media_type(content_type: str) -> str:
    """Return a video type without its parameters; any other type becomes `application/octet-stream`."""
    kind = content_type.partition(";")[0].strip().lower()
    return kind if _VIDEO_TYPE.fullmatch(kind) else "application/octet-stream"


def _too_large(max_bytes: int) -> TooLarge:
    return TooLarge("upload_too_large", f"An upload may have at most {max_bytes} bytes.", param="file")

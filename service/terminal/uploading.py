"""Sends a file: a small one in one request, a large one so that a lost connection costs what was under way."""

import base64
import mimetypes
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx2

from service.terminal.connection import Connection, Document
from service.terminal.failures import Failure
from service.terminal.retries import Retries, until_done

OnSent = Callable[[int], None]
"""Takes how many of a file's bytes have left."""

PREPARING = httpx2.Timeout(60.0, connect=10.0, read=600.0)
"""A file is probed, or fetched from its URL, before the reply comes."""

_LARGE = 16 << 20  # bytes from which on a file is sent so that it can be gone on with
_CHUNK = 64 * 1024
_TUS = {"Tus-Resumable": "1.0.0"}


def send_whole(connection: Connection, path: Path, on_sent: OnSent, retries: Retries) -> Document:
    """Send a file in one request. Returns the video; the same bytes again are the same video."""
    headers = {
        "Content-Type": _kind(path),
        "Content-Length": str(path.stat().st_size),
        "Idempotency-Key": uuid.uuid4().hex,
    }

    def send() -> Document:
        return connection.document(
            "POST",
            "/v1/videos",
            params={"filename": path.name},
            headers=headers,
            content=_chunks(path, 0, on_sent),
            timeout=PREPARING,
        )

    return until_done(send, retries)


def send_resumably(connection: Connection, path: Path, on_sent: OnSent, retries: Retries) -> str:
    """Send a file by tus: after a loss from where the service has it. Returns the video's id."""
    named = base64.b64encode(path.name.encode()).decode()
    kind = base64.b64encode(_kind(path).encode()).decode()
    begin = _TUS | {
        "Upload-Length": str(path.stat().st_size),
        "Upload-Metadata": f"filename {named},filetype {kind}",
    }
    begun = until_done(lambda: connection.headers("POST", "/v1/uploads", headers=begin), retries)
    upload = "/v1/uploads/" + begun["location"].rpartition("/")[2]
    retries.gained()
    offset = 0
    while True:
        try:
            sent = connection.headers(
                "PATCH",
                upload,
                headers=_TUS | {"Upload-Offset": str(offset), "Content-Type": "application/offset+octet-stream"},
                content=_chunks(path, offset, on_sent),
                timeout=PREPARING,
            )
        except Failure as failure:
            if failure.code != "offset_mismatch":  # what was lost arrived after all
                retries.wait(failure)
            sent = until_done(lambda: connection.headers("HEAD", upload, headers=_TUS), retries)
        if "reeltalk-video-id" in sent:
            return sent["reeltalk-video-id"]
        if int(sent["upload-offset"]) > offset:
            retries.gained()
        offset = int(sent["upload-offset"])


def is_large(path: Path) -> bool:
    """Whether a file is worth the more careful way."""
    return path.stat().st_size >= _LARGE


def _kind(path: Path) -> str:
    kind = mimetypes.guess_type(path.name)[0] or ""
    return kind if kind.startswith("video/") else "application/octet-stream"


def _chunks(path: Path, offset: int, on_sent: OnSent) -> Iterator[bytes]:
    with path.open("rb") as file:
        file.seek(offset)
        while chunk := file.read(_CHUNK):
            yield chunk
            on_sent(file.tell())

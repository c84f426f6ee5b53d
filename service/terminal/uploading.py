"""Uploads files: small ones in one request, large ones resumably, so that a lost connection loses little."""

import base64
import mimetypes
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx2

from service.terminal.connection import Connection, Document
from service.terminal.failures import Failure
from service.terminal.retries import Retries, with_retries

OnSent = Callable[[int], None]
"""Called with the number of bytes of a file that have been sent."""

PREPARING = httpx2.Timeout(60.0, connect=10.0, read=600.0)
"""The service probes a file, or fetches it from its URL, before it responds."""

_LARGE = 16 << 20  # bytes; a file of this size or larger is uploaded resumably
_CHUNK = 64 * 1024
_TUS = {"Tus-Resumable": "1.0.0"}


def send_whole(connection: Connection, path: Path, on_sent: OnSent, retries: Retries) -> Document:
    """Upload a file in one request; returns its video."""
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

    return with_retries(send, retries)


def send_resumably(connection: Connection, path: Path, on_sent: OnSent, retries: Retries) -> str:
    """Upload a file by the tus protocol, which continues after a lost connection; returns the id of its video."""
    named = base64.b64encode(path.name.encode()).decode()
    kind = base64.b64encode(_kind(path).encode()).decode()
    begin = _TUS | {
        "Upload-Length": str(path.stat().st_size),
        "Upload-Metadata": f"filename {named},filetype {kind}",
    }
    begun = with_retries(lambda: connection.headers("POST", "/v1/uploads", headers=begin), retries)
    upload = "/v1/uploads/" + begun["location"].rpartition("/")[2]
    retries.reset()
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
            if failure.code != "offset_mismatch":  # the service has received more than it could confirm
                retries.wait(failure)
            sent = with_retries(lambda: connection.headers("HEAD", upload, headers=_TUS), retries)
        if "reeltalk-video-id" in sent:
            return sent["reeltalk-video-id"]
        if int(sent["upload-offset"]) > offset:
            retries.reset()
        offset = int(sent["upload-offset"])


def is_large(path: Path) -> bool:
    """Whether a file is large enough to be uploaded resumably."""
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

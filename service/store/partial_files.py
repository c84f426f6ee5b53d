"""Partial files: the received bytes of resumable uploads, in a directory that replicas may share."""

import asyncio
import contextlib
import os
import secrets
import time
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import BinaryIO, Protocol

import structlog

from service.errors import Gone
from service.store.media import SpoolFile
from service.store.records import UploadRecord

_log = structlog.get_logger(__name__)


class PartialFile(Protocol):
    """A file that is appended to."""

    offset: int
    """The offset of the next byte."""
    parts: tuple[str, ...]
    """The objects that contain the synced bytes; empty if the file is in a directory."""

    def write(self, chunk: bytes) -> None:
        """Append a chunk."""

    async def sync(self) -> None:
        """Make all written bytes durable.

        Raises:
            Unavailable: the bytes cannot be stored right now.
        """


class PartialFiles(Protocol):
    """The unfinished files, each identified by the id of its upload."""

    async def create(self, upload_id: str) -> None:
        """Create an empty file and make its name durable."""

    def append(self, record: UploadRecord) -> AbstractAsyncContextManager[PartialFile]:
        """Open the file to append after the bytes that the record counts; bytes beyond those are truncated.

        Raises:
            Gone: the file is missing or shorter.
        """

    def whole(self, record: UploadRecord) -> AbstractAsyncContextManager[SpoolFile]:
        """The complete file, to commit to the media store; can be opened again until it is erased.

        Raises:
            Gone: the file is missing.
        """

    async def erase(self, upload_id: str) -> None:
        """Delete the file, if it exists."""

    async def sweep(self, *, older_than: float) -> None:
        """Delete the files that have received nothing for `older_than` seconds."""


class _GrowingFile(PartialFile):
    def __init__(self, file: BinaryIO, offset: int) -> None:
        self._file = file
        self.offset = offset
        self.parts = ()

    def write(self, chunk: bytes) -> None:
        self._file.write(chunk)
        self.offset += len(chunk)

    async def sync(self) -> None:
        self._file.flush()
        await asyncio.to_thread(os.fsync, self._file.fileno())


class LocalPartialFiles(PartialFiles):
    """Files under `root`/partial."""

    def __init__(self, root: Path) -> None:
        self._folder = root / "partial"
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)

    async def create(self, upload_id: str) -> None:
        """As `PartialFiles.create`."""
        await asyncio.to_thread(self._create, self._path(upload_id))

    @asynccontextmanager
    async def append(self, record: UploadRecord) -> AsyncIterator[PartialFile]:
        """As `PartialFiles.append`."""
        with self._open(record.id) as file:
            if file.seek(0, os.SEEK_END) < record.offset:
                raise upload_gone()
            file.truncate(record.offset)
            file.seek(record.offset)
            yield _GrowingFile(file, record.offset)

    @asynccontextmanager
    async def whole(self, record: UploadRecord) -> AsyncIterator[SpoolFile]:
        """As `PartialFiles.whole`: under a second name, which a commit renames."""
        with self._open(record.id) as file:
            path = await asyncio.to_thread(self._second_name, self._path(record.id))
            try:
                spool = SpoolFile(path, file)
                await asyncio.to_thread(spool.reread)
                yield spool
            finally:
                if path.name != record.id:
                    path.unlink(missing_ok=True)

    async def erase(self, upload_id: str) -> None:
        """As `PartialFiles.erase`."""
        await asyncio.to_thread(self._path(upload_id).unlink, missing_ok=True)

    async def sweep(self, *, older_than: float) -> None:
        """As `PartialFiles.sweep`."""
        await asyncio.to_thread(self._sweep, time.time() - older_than)

    def _path(self, upload_id: str) -> Path:
        return self._folder / upload_id

    def _open(self, upload_id: str) -> BinaryIO:
        try:
            return self._path(upload_id).open("r+b")
        except FileNotFoundError:
            raise upload_gone() from None

    def _sweep(self, oldest: float) -> None:
        for path in self._folder.iterdir():
            with contextlib.suppress(FileNotFoundError):  # another replica deleted it
                if path.stat().st_mtime < oldest:
                    path.unlink()

    @staticmethod
    def _second_name(path: Path) -> Path:
        second = path.with_name(f"{path.name}.{secrets.token_hex(4)}")
        try:
            second.hardlink_to(path)
        except OSError:  # no hard links here: after a crash during the commit the file must be uploaded again
            return path
        return second

    @staticmethod
    def _create(path: Path) -> None:
        path.touch(mode=0o600, exist_ok=False)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def upload_gone() -> Gone:
    """The error for an upload whose bytes are missing; logs the likely cause."""
    _log.warning(
        "upload_bytes_missing",
        advice="all replicas need the same REELTALK_MEDIA_DIR or REELTALK_MEDIA_URL",
    )
    return Gone(
        "upload_gone",
        "The bytes of this upload are not stored on this replica; start a new upload.",
        param="upload_id",
    )

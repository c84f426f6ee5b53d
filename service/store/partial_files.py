"""The bytes of resumable uploads so far, as they grow: in a directory that replicas may share, or in a bucket."""

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
    """A file that grows at its end."""

    offset: int
    """Where the next byte goes."""
    parts: tuple[str, ...]
    """The objects that its synced bytes are in; none where it is one file."""

    def write(self, chunk: bytes) -> None:
        """Append a chunk."""

    async def sync(self) -> None:
        """Let everything outlive this process, and this machine if it is kept elsewhere.

        Raises:
            Unavailable: it cannot be kept right now.
        """


class PartialFiles(Protocol):
    """The unfinished files, each named by its upload."""

    async def create(self, upload_id: str) -> None:
        """An empty file; it stays, with its name, before this returns."""

    def append(self, record: UploadRecord) -> AbstractAsyncContextManager[PartialFile]:
        """The file, to go on behind the bytes that the record counts; what lies there already is cut off.

        Raises:
            Gone: the file is not there, or shorter.
        """

    def whole(self, record: UploadRecord) -> AbstractAsyncContextManager[SpoolFile]:
        """The finished file, ready to be committed to the media; until it is erased it can be had again.

        Raises:
            Gone: the file is not there.
        """

    async def erase(self, upload_id: str) -> None:
        """Remove the file, if it is there."""

    async def sweep(self, *, older_than: float) -> None:
        """Remove the files that got no byte for so many seconds."""


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
        """As `PartialFiles.whole`: under a second name, which a commit may take away."""
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
            with contextlib.suppress(FileNotFoundError):  # another replica sweeps too
                if path.stat().st_mtime < oldest:
                    path.unlink()

    @staticmethod
    def _second_name(path: Path) -> Path:
        second = path.with_name(f"{path.name}.{secrets.token_hex(4)}")
        try:
            second.hardlink_to(path)
        except OSError:  # a file system that knows one name only: a crash in mid-commit then costs another upload
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
    """The bytes that a record counts are not here; the log says why that may be."""
    _log.warning(
        "upload_bytes_missing", advice="replicas must share REELTALK_MEDIA_DIR, or a bucket by REELTALK_MEDIA_URL"
    )
    return Gone(
        "upload_gone",
        "The bytes of this upload are not where the replica that was asked keeps them; begin a new one.",
        param="upload_id",
    )

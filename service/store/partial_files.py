"""The bytes of resumable uploads so far: a file each, in a directory that replicas share if they share uploads.

Also where the media are in a bucket: a bucket has no files that grow. The whole file goes there.
"""

import asyncio
import contextlib
import os
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import BinaryIO

import structlog

from service.errors import Gone
from service.store.media import SpoolFile

_log = structlog.get_logger(__name__)


class PartialFile:
    """A file that grows at its end."""

    def __init__(self, file: BinaryIO, offset: int) -> None:
        self._file = file
        self.offset = offset
        """Where the next byte goes."""

    def write(self, chunk: bytes) -> None:
        """Append a chunk."""
        self._file.write(chunk)
        self.offset += len(chunk)

    async def sync(self) -> None:
        """Put everything on disk."""
        self._file.flush()
        await asyncio.to_thread(os.fsync, self._file.fileno())


class PartialFiles:
    """Files under `root`/partial, named by their uploads."""

    def __init__(self, root: Path) -> None:
        self._folder = root / "partial"
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)

    async def create(self, upload_id: str) -> None:
        """An empty file; on disk, with its name, before this returns."""
        await asyncio.to_thread(self._create, self._path(upload_id))

    @contextlib.contextmanager
    def append(self, upload_id: str, *, offset: int) -> Iterator[PartialFile]:
        """The file, to go on after `offset` bytes; what was written behind them and never told of is cut off.

        Raises:
            Gone: the file is not there, or shorter.
        """
        with self._open(upload_id) as file:
            if file.seek(0, os.SEEK_END) < offset:
                raise _gone()
            file.truncate(offset)
            file.seek(offset)
            yield PartialFile(file, offset)

    @contextlib.asynccontextmanager
    async def whole(self, upload_id: str) -> AsyncIterator[SpoolFile]:
        """The finished file, ready to be committed to the media.

        Raises:
            Gone: the file is not there.
        """
        with self._open(upload_id) as file:
            spool = SpoolFile(self._path(upload_id), file)
            await asyncio.to_thread(spool.reread)
            yield spool

    async def erase(self, upload_id: str) -> None:
        """Remove the file, if it is there."""
        await asyncio.to_thread(self._path(upload_id).unlink, missing_ok=True)

    async def sweep(self, *, older_than: float) -> None:
        """Remove the files that got no byte for so many seconds."""
        await asyncio.to_thread(self._sweep, time.time() - older_than)

    def _path(self, upload_id: str) -> Path:
        return self._folder / upload_id

    def _open(self, upload_id: str) -> BinaryIO:
        try:
            return self._path(upload_id).open("r+b")
        except FileNotFoundError:
            raise _gone() from None

    def _sweep(self, oldest: float) -> None:
        for path in self._folder.iterdir():
            with contextlib.suppress(FileNotFoundError):  # another replica sweeps too
                if path.stat().st_mtime < oldest:
                    path.unlink()

    @staticmethod
    def _create(path: Path) -> None:
        path.touch(mode=0o600, exist_ok=False)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def _gone() -> Gone:
    _log.warning(
        "upload_bytes_missing", advice="replicas must share REELTALK_MEDIA_DIR, also where media are in a bucket"
    )
    return Gone(
        "upload_gone",
        "The bytes of this upload are not in the media directory of the replica that was asked; begin a new one.",
        param="upload_id",
    )

"""The media store: uploaded files and images of their frames, in a directory that replicas may share."""

import asyncio
import contextlib
import hashlib
import os
import secrets
import shutil
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

_STALE_SPOOL_SECONDS = 24 * 3600
_READ_CHUNK = 1 << 20


class SpoolFile:
    """An upload being received: hashed while it is written, and removed unless it is committed."""

    def __init__(self, path: Path, file: BinaryIO) -> None:
        self.path = path
        self.num_bytes = 0
        self._file = file
        self._hash = hashlib.sha256()

    @property
    def sha256(self) -> str:
        """SHA-256 of the bytes so far, hex."""
        return self._hash.hexdigest()

    def write(self, chunk: bytes) -> None:
        """Append a chunk."""
        self._file.write(chunk)
        self._hash.update(chunk)
        self.num_bytes += len(chunk)

    def reread(self) -> None:
        """Hash and count the bytes that the file already contains; call this before `write`."""
        for chunk in iter(lambda: self._file.read(_READ_CHUNK), b""):
            self._hash.update(chunk)
            self.num_bytes += len(chunk)

    def sync(self) -> str:
        """Flush everything to disk; returns the SHA-256 of the bytes, hex."""
        self._file.flush()
        os.fsync(self._file.fileno())
        return self._hash.hexdigest()


@dataclass(frozen=True, kw_only=True, slots=True)
class StoredFile:
    """One stored file; `modified` is the time of its last upload, in seconds since 1970."""

    tenant: str
    sha256: str
    num_bytes: int
    modified: float


@dataclass(frozen=True, kw_only=True, slots=True)
class RemoteContent:
    """A file, or a range of it, as another server sends it."""

    status: int
    headers: dict[str, str]
    chunks: Iterator[bytes]


class MediaStore:
    """Files under `root`: each named by its SHA-256, next to the images of its default frames."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._spool = root / "spool"

    def open(self) -> None:
        """Create the directories and remove what crashed uploads left behind."""
        self._spool.mkdir(parents=True, exist_ok=True, mode=0o700)
        oldest = time.time() - _STALE_SPOOL_SECONDS
        for leftover in self._spool.iterdir():
            if leftover.stat().st_mtime < oldest:
                leftover.unlink(missing_ok=True)

    @asynccontextmanager
    async def spool(self) -> AsyncIterator[SpoolFile]:
        """A file that receives an upload; removed at the end of the block unless it was committed."""
        path = self._spool / secrets.token_hex(16)
        with path.open("wb") as file:
            try:
                yield SpoolFile(path, file)
            finally:
                path.unlink(missing_ok=True)

    async def commit(self, upload: SpoolFile, tenant: str) -> str:
        """Make a received upload permanent and synced to disk; returns its SHA-256, hex."""
        sha256 = await asyncio.to_thread(upload.sync)
        await asyncio.to_thread(self._rename, upload.path, self.path(tenant, sha256))
        return sha256

    def path(self, tenant: str, sha256: str) -> Path:
        """The path of the file with this hash, whether or not it exists."""
        return self._root / tenant / sha256[:2] / sha256

    @asynccontextmanager
    async def local(self, tenant: str, sha256: str) -> AsyncIterator[Path | None]:
        """The file on the local disk, for the duration of the block; None if it is missing."""
        path = self.path(tenant, sha256)
        yield path if await asyncio.to_thread(path.is_file) else None

    async def content(self, tenant: str, sha256: str, *, byte_range: str | None) -> Path | RemoteContent | None:
        """The file to send to a client: a path, or a remote response for `byte_range`; None if it is missing."""
        del byte_range  # a response from a path handles the Range header itself
        path = self.path(tenant, sha256)
        return path if await asyncio.to_thread(path.is_file) else None

    async def stored(self) -> list[StoredFile]:
        """All files of all tenants."""
        return await asyncio.to_thread(self._list)

    async def exists(self, tenant: str, sha256: str) -> bool:
        """Whether the file exists."""
        return await asyncio.to_thread(self.path(tenant, sha256).is_file)

    async def put_frames(self, tenant: str, sha256: str, pictures: Sequence[bytes]) -> None:
        """Store the JPEG images of a video's sampled frames."""
        await asyncio.to_thread(self._write_frames, self._frames(tenant, sha256), pictures)

    async def frame(self, tenant: str, sha256: str, index: int) -> bytes | None:
        """Image `index` of the sampled frames, as JPEG; None if there is none."""
        path = self._frames(tenant, sha256) / f"{index}.jpg"
        try:
            return await asyncio.to_thread(path.read_bytes)
        except FileNotFoundError:
            return None

    async def erase(self, tenant: str, sha256: str) -> None:
        """Delete the file and its images."""
        await asyncio.to_thread(self.path(tenant, sha256).unlink, missing_ok=True)
        await asyncio.to_thread(shutil.rmtree, self._frames(tenant, sha256), ignore_errors=True)

    def _list(self) -> list[StoredFile]:
        found = []
        for path in self._root.glob("*/??/" + "?" * 64):
            with contextlib.suppress(FileNotFoundError):  # erased meanwhile
                facts = path.stat()
                found.append(
                    StoredFile(
                        tenant=path.parts[-3], sha256=path.name, num_bytes=facts.st_size, modified=facts.st_mtime
                    )
                )
        return found

    def _frames(self, tenant: str, sha256: str) -> Path:
        return self._root / tenant / sha256[:2] / f"{sha256}.frames"

    @staticmethod
    def _rename(source: Path, target: Path) -> None:
        target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        os.utime(source)  # retention counts from this time
        source.replace(target)
        directory = os.open(target.parent, os.O_RDONLY)
        try:
            os.fsync(directory)  # the file's name must survive a power cut too
        finally:
            os.close(directory)

    @staticmethod
    def _write_frames(directory: Path, pictures: Sequence[bytes]) -> None:
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        for index, picture in enumerate(pictures):
            part = directory / f".{index}.{secrets.token_hex(4)}"
            part.write_bytes(picture)
            part.replace(directory / f"{index}.jpg")

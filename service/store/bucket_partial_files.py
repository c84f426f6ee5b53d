"""Partial files of resumable uploads in a bucket: one object per received piece, as objects cannot grow."""

import secrets
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import BinaryIO

from service.store.bucket import Bucket
from service.store.media import SpoolFile
from service.store.partial_files import PartialFile, PartialFiles, upload_gone
from service.store.records import UploadRecord

_CHUNK = 1 << 20


class _Piece(PartialFile):
    """Received bytes on the local disk until they are synced; then an object with a unique name."""

    def __init__(self, bucket: Bucket, path: Path, file: BinaryIO, record: UploadRecord) -> None:
        self.offset = record.offset
        self.parts = record.parts
        self._bucket = bucket
        self._path = path
        self._file = file
        self._start = record.offset
        self._folder = _folder(record.id)

    def write(self, chunk: bytes) -> None:
        self._file.write(chunk)
        self.offset += len(chunk)

    async def sync(self) -> None:
        if self.offset == self._start:
            return
        part = f"{self._start:016d}-{self.offset:016d}-{secrets.token_hex(4)}"
        self._file.flush()
        await self._bucket.put_file(self._folder + part, self._path)
        self.parts = (*self.parts, part)
        self._start = self.offset
        self._file.seek(0)
        self._file.truncate()


class BucketPartialFiles(PartialFiles):
    """Objects under `partial/` and the upload's id. Only those that the upload's record names belong to the file.

    `root` is a local directory for bytes being received.
    """

    def __init__(self, root: Path, bucket: Bucket) -> None:
        self._spool = root / "spool"
        self._spool.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._bucket = bucket

    async def create(self, upload_id: str) -> None:
        """Do nothing: the first object is created with the first bytes."""

    @asynccontextmanager
    async def append(self, record: UploadRecord) -> AsyncIterator[PartialFile]:
        """As `PartialFiles.append`."""
        if _end(record) != record.offset:
            raise upload_gone()
        with self._file() as (path, file):
            yield _Piece(self._bucket, path, file, record)

    @asynccontextmanager
    async def whole(self, record: UploadRecord) -> AsyncIterator[SpoolFile]:
        """As `PartialFiles.whole`: the parts, concatenated on the local disk."""
        with self._file() as (path, file):
            spool = SpoolFile(path, file)
            for part in record.parts:
                if not await self._bucket.call(lambda: self._copy(_folder(record.id) + part, spool)):  # noqa: B023  awaited
                    raise upload_gone()
            if spool.num_bytes != record.length:
                raise upload_gone()
            yield spool

    async def erase(self, upload_id: str) -> None:
        """As `PartialFiles.erase`."""
        await self._bucket.call(lambda: self._bucket.erase(_folder(upload_id)))

    async def sweep(self, *, older_than: float) -> None:
        """As `PartialFiles.sweep`."""
        await self._bucket.call(lambda: self._sweep(time.time() - older_than))

    @contextmanager
    def _file(self) -> Iterator[tuple[Path, BinaryIO]]:
        path = self._spool / secrets.token_hex(16)
        with path.open("wb") as file:
            try:
                yield path, file
            finally:
                path.unlink(missing_ok=True)

    def _copy(self, name: str, spool: SpoolFile) -> bool:
        reply = self._bucket.client.get_object(**self._bucket.location(name))
        for chunk in reply["Body"].iter_chunks(_CHUNK):
            spool.write(chunk)
        return True

    def _sweep(self, oldest: float) -> None:
        newest: dict[str, float] = {}
        for name, facts in self._bucket.objects(_folder("")[:-1]):
            folder = name.rpartition("/")[0] + "/"
            newest[folder] = max(newest.get(folder, 0.0), facts["LastModified"].timestamp())
        for folder, modified in newest.items():
            if modified < oldest:
                self._bucket.erase(folder)


def _folder(upload_id: str) -> str:
    return f"partial/{upload_id}/"


def _end(record: UploadRecord) -> int:
    """The offset after the last byte of the parts."""
    return int(record.parts[-1].split("-")[1]) if record.parts else 0

"""The media store in an S3-compatible bucket, for replicas that share no disk."""

import asyncio
import hashlib
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import structlog
from botocore.exceptions import ClientError

from service.store.bucket import Bucket
from service.store.media import MediaStore, RemoteContent, SpoolFile, StoredFile

_log = structlog.get_logger(__name__)

_CHUNK = 1 << 20
_RELAYED = {"ContentLength": "Content-Length", "ContentRange": "Content-Range", "ETag": "ETag"}


class BucketStore(MediaStore):
    """Files in a bucket, named as in a directory. `root` is a local directory for files being received or decoded."""

    def __init__(self, root: Path, bucket: Bucket) -> None:
        super().__init__(root)
        self._bucket = bucket

    async def commit(self, upload: SpoolFile, tenant: str) -> str:
        """Store a received upload in the bucket; returns its SHA-256, hex.

        Raises:
            Unavailable: the upload to the bucket failed.
        """
        sha256 = await asyncio.to_thread(upload.sync)
        await self._bucket.put_file(_name(tenant, sha256), upload.path)
        return sha256

    @asynccontextmanager
    async def local(self, tenant: str, sha256: str) -> AsyncIterator[Path | None]:
        """A local copy of the file, for the duration of the block; None if the file is missing or damaged."""
        async with self.spool() as copy:
            location = self._bucket.location(_name(tenant, sha256))
            found = await self._bucket.call(
                lambda: self._bucket.client.download_file(**location, Filename=str(copy.path)) or True
            )
            if found and await asyncio.to_thread(_sha256, copy.path) != sha256:
                _log.error("file_damaged", sha256=sha256)
                found = None
            yield copy.path if found else None

    async def content(self, tenant: str, sha256: str, *, byte_range: str | None) -> RemoteContent | None:
        """The bucket's response for `byte_range`; None if the file is missing."""
        name, options = _name(tenant, sha256), {"Range": byte_range} if byte_range else {}
        reply = await self._bucket.call(lambda: self._get(name, options))
        if reply is None:
            return None
        headers = {header: str(reply[field]) for field, header in _RELAYED.items() if field in reply}
        status = reply["ResponseMetadata"]["HTTPStatusCode"]
        if status == 416:
            return RemoteContent(status=416, headers={}, chunks=iter(()))
        return RemoteContent(
            status=status, headers=headers | {"Accept-Ranges": "bytes"}, chunks=reply["Body"].iter_chunks(_CHUNK)
        )

    async def stored(self) -> list[StoredFile]:
        """All files of all tenants."""
        return await self._bucket.call(lambda: list(self._files())) or []

    async def exists(self, tenant: str, sha256: str) -> bool:
        """Whether the file is in the bucket."""
        name = _name(tenant, sha256)
        return (
            await self._bucket.call(lambda: self._bucket.client.head_object(**self._bucket.location(name))) is not None
        )

    async def put_frames(self, tenant: str, sha256: str, pictures: Sequence[bytes]) -> None:
        """Store the JPEG images of a video's sampled frames."""

        def put() -> None:
            for index, picture in enumerate(pictures):
                location = self._bucket.location(_frame_name(tenant, sha256, index))
                self._bucket.client.put_object(**location, Body=picture, ContentType="image/jpeg")

        await self._bucket.call(put)

    async def frame(self, tenant: str, sha256: str, index: int) -> bytes | None:
        """Image `index` of the sampled frames, as JPEG; None if there is none."""

        def get() -> bytes:
            location = self._bucket.location(_frame_name(tenant, sha256, index))
            picture: bytes = self._bucket.client.get_object(**location)["Body"].read()
            return picture

        return await self._bucket.call(get)

    async def erase(self, tenant: str, sha256: str) -> None:
        """Delete the file and its images, whose names start with its name."""
        await self._bucket.call(lambda: self._bucket.erase(_name(tenant, sha256)))

    def _get(self, name: str, options: dict[str, str]) -> dict[str, Any]:
        try:
            reply: dict[str, Any] = self._bucket.client.get_object(**self._bucket.location(name), **options)
        except ClientError as error:
            if error.response["Error"]["Code"] != "InvalidRange":
                raise
            reply = {"ResponseMetadata": {"HTTPStatusCode": 416}}
        return reply

    def _files(self) -> Iterator[StoredFile]:
        for name, facts in self._bucket.objects():
            parts = name.split("/")
            if len(parts) == 3 and len(parts[2]) == 64:
                yield StoredFile(
                    tenant=parts[0],
                    sha256=parts[2],
                    num_bytes=facts["Size"],
                    modified=facts["LastModified"].timestamp(),
                )


def _name(tenant: str, sha256: str) -> str:
    return f"{tenant}/{sha256[:2]}/{sha256}"


def _frame_name(tenant: str, sha256: str, index: int) -> str:
    return f"{_name(tenant, sha256)}.frames/{index}.jpg"


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

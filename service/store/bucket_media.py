"""The media store in an S3-compatible bucket: what replicas share when they share no disk."""

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
    """Files in a bucket, named as in a directory; `root` is one of this replica, for what comes in and is decoded."""

    def __init__(self, root: Path, bucket: Bucket) -> None:
        super().__init__(root)
        self._bucket = bucket

    async def commit(self, upload: SpoolFile, tenant: str) -> str:
        """Make a received upload permanent: in the bucket before this returns. Returns its SHA-256, hex.

        Raises:
            Unavailable: the bucket does not take it.
        """
        sha256 = await asyncio.to_thread(upload.sync)
        await self._bucket.put_file(_name(tenant, sha256), upload.path)
        return sha256

    @asynccontextmanager
    async def local(self, tenant: str, sha256: str) -> AsyncIterator[Path | None]:
        """A copy of the file on this machine's disk, as long as the block lasts; None if it is gone or damaged."""
        async with self.spool() as copy:
            place = self._bucket.at(_name(tenant, sha256))
            found = await self._bucket.ask(
                lambda: self._bucket.client.download_file(**place, Filename=str(copy.path)) or True
            )
            if found and await asyncio.to_thread(_sha256, copy.path) != sha256:
                _log.error("file_damaged", sha256=sha256)
                found = None
            yield copy.path if found else None

    async def content(self, tenant: str, sha256: str, *, byte_range: str | None) -> RemoteContent | None:
        """What the bucket sends of `byte_range`; None if the file is gone."""
        name, asked = _name(tenant, sha256), {"Range": byte_range} if byte_range else {}
        reply = await self._bucket.ask(lambda: self._get(name, asked))
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
        return await self._bucket.ask(lambda: list(self._files())) or []

    async def exists(self, tenant: str, sha256: str) -> bool:
        """Whether the file is in the bucket."""
        name = _name(tenant, sha256)
        return await self._bucket.ask(lambda: self._bucket.client.head_object(**self._bucket.at(name))) is not None

    async def put_frames(self, tenant: str, sha256: str, pictures: Sequence[bytes]) -> None:
        """Keep the JPEG pictures of a video's sampled frames."""

        def put() -> None:
            for index, picture in enumerate(pictures):
                place = self._bucket.at(_frame_name(tenant, sha256, index))
                self._bucket.client.put_object(**place, Body=picture, ContentType="image/jpeg")

        await self._bucket.ask(put)

    async def frame(self, tenant: str, sha256: str, index: int) -> bytes | None:
        """Picture `index` of the sampled frames, as JPEG; None if there is none."""

        def get() -> bytes:
            place = self._bucket.at(_frame_name(tenant, sha256, index))
            picture: bytes = self._bucket.client.get_object(**place)["Body"].read()
            return picture

        return await self._bucket.ask(get)

    async def erase(self, tenant: str, sha256: str) -> None:
        """Remove the file and its pictures, whose names begin with its own."""
        await self._bucket.ask(lambda: self._bucket.erase(_name(tenant, sha256)))

    def _get(self, name: str, asked: dict[str, str]) -> dict[str, Any]:
        try:
            reply: dict[str, Any] = self._bucket.client.get_object(**self._bucket.at(name), **asked)
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

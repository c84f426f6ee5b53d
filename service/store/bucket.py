"""The media store in an S3-compatible bucket: what replicas share when they share no disk."""

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import parse_qs, urlsplit

import boto3
import structlog
from boto3.exceptions import Boto3Error
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from service.errors import Unavailable
from service.store.media import MediaStore, RemoteContent, SpoolFile, StoredFile

_log = structlog.get_logger(__name__)
_T = TypeVar("_T")

_MISSING = {"404", "NoSuchKey", "NotFound"}
_CHUNK = 1 << 20
_RELAYED = {"ContentLength": "Content-Length", "ContentRange": "Content-Range", "ETag": "ETag"}


class BucketStore(MediaStore):
    """Files in the bucket of `url` (`s3://BUCKET/PREFIX?endpoint=…&region=…`), named as in a directory.

    `root` is a directory of this replica for what is coming in and for what is being decoded. Credentials come from
    where boto3 looks for them: the environment, a profile, the machine's role.
    """

    def __init__(self, root: Path, url: str) -> None:
        super().__init__(root)
        parts, query = urlsplit(url), parse_qs(urlsplit(url).query)
        prefix = parts.path.strip("/")
        self._bucket = parts.netloc
        self._prefix = f"{prefix}/" if prefix else ""
        endpoint = query.get("endpoint", [None])[0]
        self._client: Any = boto3.client(
            "s3",
            endpoint_url=endpoint,
            region_name=query.get("region", [None])[0],
            config=Config(
                connect_timeout=3,
                read_timeout=30,
                retries={"mode": "standard", "total_max_attempts": 3},
                max_pool_connections=32,
                s3={"addressing_style": "path" if endpoint else "auto"},
            ),
        )

    async def commit(self, upload: SpoolFile, tenant: str) -> str:
        """Make a received upload permanent: in the bucket before this returns. Returns its SHA-256, hex.

        Raises:
            Unavailable: the bucket does not take it.
        """
        sha256 = await asyncio.to_thread(upload.sync)
        checked = {"ChecksumAlgorithm": "SHA256"}
        await self._ask(
            lambda: self._client.upload_file(
                str(upload.path), self._bucket, self._name(tenant, sha256), ExtraArgs=checked
            )
        )
        return sha256

    @asynccontextmanager
    async def local(self, tenant: str, sha256: str) -> AsyncIterator[Path | None]:
        """A copy of the file on this machine's disk, as long as the block lasts; None if it is gone or damaged."""
        async with self.spool() as copy:
            name = self._name(tenant, sha256)
            found = await self._ask(lambda: self._client.download_file(self._bucket, name, str(copy.path)) or True)
            if found and await asyncio.to_thread(_sha256, copy.path) != sha256:
                _log.error("file_damaged", sha256=sha256)
                found = None
            yield copy.path if found else None

    async def content(self, tenant: str, sha256: str, *, byte_range: str | None) -> RemoteContent | None:
        """What the bucket sends of `byte_range`; None if the file is gone."""
        name, asked = self._name(tenant, sha256), {"Range": byte_range} if byte_range else {}
        reply = await self._ask(lambda: self._get(name, asked))
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
        return await self._ask(lambda: list(self._files())) or []

    async def exists(self, tenant: str, sha256: str) -> bool:
        """Whether the file is in the bucket."""
        name = self._name(tenant, sha256)
        return await self._ask(lambda: self._client.head_object(Bucket=self._bucket, Key=name)) is not None

    async def put_frames(self, tenant: str, sha256: str, pictures: Sequence[bytes]) -> None:
        """Keep the JPEG pictures of a video's sampled frames."""

        def put() -> None:
            for index, picture in enumerate(pictures):
                name = self._frame_name(tenant, sha256, index)
                self._client.put_object(Bucket=self._bucket, Key=name, Body=picture, ContentType="image/jpeg")

        await self._ask(put)

    async def frame(self, tenant: str, sha256: str, index: int) -> bytes | None:
        """Picture `index` of the sampled frames, as JPEG; None if there is none."""
        name = self._frame_name(tenant, sha256, index)

        def get() -> bytes:
            picture: bytes = self._client.get_object(Bucket=self._bucket, Key=name)["Body"].read()
            return picture

        return await self._ask(get)

    async def erase(self, tenant: str, sha256: str) -> None:
        """Remove the file and its pictures."""

        def erase() -> None:
            name = self._name(tenant, sha256)
            for found in self._objects(name):  # its pictures' names begin with its own
                self._client.delete_object(Bucket=self._bucket, Key=found["Key"])

        await self._ask(erase)

    def _get(self, name: str, asked: dict[str, str]) -> dict[str, Any]:
        try:
            reply: dict[str, Any] = self._client.get_object(Bucket=self._bucket, Key=name, **asked)
        except ClientError as error:
            if error.response["Error"]["Code"] != "InvalidRange":
                raise
            reply = {"ResponseMetadata": {"HTTPStatusCode": 416}}
        return reply

    def _files(self) -> Iterator[StoredFile]:
        for found in self._objects(self._prefix):
            parts = found["Key"].removeprefix(self._prefix).split("/")
            if len(parts) == 3 and len(parts[2]) == 64:
                yield StoredFile(
                    tenant=parts[0],
                    sha256=parts[2],
                    num_bytes=found["Size"],
                    modified=found["LastModified"].timestamp(),
                )

    def _objects(self, prefix: str) -> Iterator[dict[str, Any]]:
        pages = self._client.get_paginator("list_objects_v2").paginate(Bucket=self._bucket, Prefix=prefix)
        for page in pages:
            yield from page.get("Contents", ())

    def _name(self, tenant: str, sha256: str) -> str:
        return f"{self._prefix}{tenant}/{sha256[:2]}/{sha256}"

    def _frame_name(self, tenant: str, sha256: str, index: int) -> str:
        return f"{self._name(tenant, sha256)}.frames/{index}.jpg"

    async def _ask(self, call: Callable[[], _T]) -> _T | None:
        """What a call in a thread returns; None where the thing is not there.

        Raises:
            Unavailable: the bucket cannot be reached, or refuses.
        """
        try:
            return await asyncio.to_thread(call)
        except ClientError as error:
            code = error.response["Error"]["Code"]
            if code in _MISSING:
                return None
            _log.warning("bucket_refused", code=code)
        except (BotoCoreError, Boto3Error) as error:
            _log.warning("bucket_unavailable", error=type(error).__name__)
        raise Unavailable("media_unavailable", "The uploaded files cannot be reached right now; try again in a moment.")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

"""An S3-compatible bucket, with its failures as `Unavailable`."""

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import parse_qs, urlsplit

import boto3
import structlog
from boto3.exceptions import Boto3Error
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from service.errors import StorageUnavailable

_log = structlog.get_logger(__name__)
_T = TypeVar("_T")

_MISSING = {"404", "NoSuchKey", "NotFound"}


class Bucket:
    """The bucket of `url`: `s3://BUCKET/PREFIX?endpoint=…&region=…`. Object names are relative to the prefix.

    boto3 finds the credentials: in the environment, a profile or the machine's role. Calls of `client` block; run them
    with `call`.
    """

    def __init__(self, url: str) -> None:
        parts, query = urlsplit(url), parse_qs(urlsplit(url).query)
        prefix = parts.path.strip("/")
        self._name = parts.netloc
        self._prefix = f"{prefix}/" if prefix else ""
        endpoint = query.get("endpoint", [None])[0]
        self.client: Any = boto3.client(
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

    def location(self, name: str) -> dict[str, str]:
        """Bucket and key of an object, as arguments for calls of `client`."""
        return {"Bucket": self._name, "Key": self._prefix + name}

    async def put_file(self, name: str, path: Path) -> None:
        """Upload a file; the bucket verifies its checksum.

        Raises:
            Unavailable: the upload failed.
        """
        extra = {"ChecksumAlgorithm": "SHA256"}
        await self.call(lambda: self.client.upload_file(str(path), **self.location(name), ExtraArgs=extra))

    def objects(self, prefix: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
        """Name and metadata of all objects whose names start with `prefix`."""
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=self._name, Prefix=self._prefix + prefix)
        for page in pages:
            for found in page.get("Contents", ()):
                yield found["Key"].removeprefix(self._prefix), found

    def erase(self, prefix: str) -> None:
        """Delete all objects whose names start with `prefix`."""
        for name, _ in self.objects(prefix):
            self.client.delete_object(**self.location(name))

    async def call(self, function: Callable[[], _T]) -> _T | None:
        """Run a blocking function in a thread and return its result; None if the object does not exist.

        Raises:
            Unavailable: the bucket is unreachable or refuses the request.
        """
        try:
            return await asyncio.to_thread(function)
        except ClientError as error:
            code = error.response["Error"]["Code"]
            if code in _MISSING:
                return None
            _log.warning("bucket_refused", code=code)
        except (BotoCoreError, Boto3Error) as error:
            _log.warning("bucket_unavailable", error=type(error).__name__)
        raise StorageUnavailable(
            "media_unavailable", "The uploaded files cannot be reached right now; try again in a moment."
        )

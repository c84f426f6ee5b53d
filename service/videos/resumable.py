"""Resumable uploads: a file comes in pieces, to any replica, and becomes a video when its last byte is there.

What is acknowledged is on disk or in a bucket; how far that is stands in Redis. A piece that breaks off counts as far
as it came.
"""

import asyncio
import contextlib
import hashlib
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Literal

from service.access.callers import Caller
from service.errors import (
    ChecksumMismatch,
    Conflict,
    Locked,
    NotFound,
    ServiceError,
    TooLarge,
    from_code,
)
from service.ids import new_id
from service.settings import Settings
from service.store import keys
from service.store.leases import Leases
from service.store.partial_files import PartialFile, PartialFiles
from service.store.records import Problem, UploadRecord
from service.store.uploads import UploadStore
from service.videos.ingest import Ingest
from service.videos.preparation import is_our_fault
from service.videos.quota import Quota, Reservation
from service.videos.receiving import UploadHeader, paced

_CHECKPOINT = 8 << 20  # bytes after which a piece that is still coming is put there and counted


@dataclass(frozen=True, slots=True)
class Checksum:
    """What a piece's bytes must hash to."""

    algorithm: Literal["sha1", "sha256"]
    digest: bytes


class Resumable:
    """The resumable uploads that come to this replica."""

    def __init__(
        self,
        *,
        settings: Settings,
        ingest: Ingest,
        quota: Quota,
        uploads: UploadStore,
        partial_files: PartialFiles,
        leases: Leases,
    ) -> None:
        self._settings = settings
        self._ingest = ingest
        self._quota = quota
        self._uploads = uploads
        self._partial_files = partial_files
        self._leases = leases

    async def create(self, caller: Caller, *, length: int, header: UploadHeader, metadata: str) -> UploadRecord:
        """Begin an upload of `length` bytes.

        Raises:
            TooLarge: that is more than this server takes.
            LimitExceeded: that is more than the key's tenant has room for.
        """
        if length > self._settings.max_upload_bytes:
            raise _too_large(self._settings.max_upload_bytes)
        record = UploadRecord(
            id=new_id("upl"),
            length=length,
            filename=header.filename,
            content_type=header.content_type,
            metadata=metadata,
            expires_at=time.time() + self._settings.upload_expiry,
        )
        room = self._room(record.id)
        await self._quota.reserve(caller, room, length)
        try:
            await self._partial_files.create(record.id)
            await self._uploads.create(caller.tenant, record)
        except BaseException:
            await asyncio.shield(self._quota.release(caller.tenant, room))
            raise
        return record

    async def get(self, caller: Caller, upload_id: str) -> UploadRecord:
        """An upload, as far as it is; makes the video of one that a crash left whole without it.

        Raises:
            ServiceError: there is no such upload, its file was no usable video, or there is no room for it.
        """
        tenant = caller.tenant
        record = await self._record(tenant, upload_id)
        if not record.is_whole or record.video_id is not None:
            return record
        async with self._leases.hold(keys.upload_lease(tenant, upload_id), new_id("req")) as is_ours:
            return await self._finish(caller, await self._record(tenant, upload_id)) if is_ours else record

    async def append(
        self, caller: Caller, upload_id: str, chunks: AsyncIterator[bytes], *, offset: int, checksum: Checksum | None
    ) -> UploadRecord:
        """Take the bytes from `offset` on. With a checksum all of them count, or none.

        Raises:
            ServiceError: a refusal, a failure, or a file that is no usable video.
        """
        tenant = caller.tenant
        lease, holder = keys.upload_lease(tenant, upload_id), new_id("req")
        async with self._leases.hold(lease, holder) as is_ours:
            if not is_ours:
                raise _busy()
            record = await self._record(tenant, upload_id)
            if offset != record.offset:
                raise Conflict("offset_mismatch", f"The upload goes on at byte {record.offset}.", param="Upload-Offset")
            with self._ingest.place():
                async with self._partial_files.append(record) as file:
                    piece = _Piece(tenant, record, file, lease, holder)
                    await self._take(piece, chunks, checksum)
            record = piece.record
            return await self._finish(caller, record) if record.is_whole else record

    async def terminate(self, tenant: str, upload_id: str) -> None:
        """End an upload and forget what came of it. A video that it has become stays.

        Raises:
            NotFound: there is no such upload.
        """
        if not await self._uploads.erase(tenant, upload_id):
            raise _not_found()
        await self._quota.release(tenant, self._room(upload_id))
        await self._partial_files.erase(upload_id)

    # -- what an upload becomes

    async def _finish(self, caller: Caller, record: UploadRecord) -> UploadRecord:
        if record.video_id is not None:
            return record
        tenant = caller.tenant
        header = UploadHeader(filename=record.filename, content_type=record.content_type)
        async with self._partial_files.whole(record) as spool:
            video, _ = await self._ingest.keep(caller, spool, header, self._room(record.id))
        await self._quota.release(tenant, self._room(record.id))  # the bytes may have been here already
        record = record.model_copy(update={"video_id": video.id})
        await self._uploads.update(tenant, record)
        with contextlib.suppress(ServiceError):  # whoever sweeps finds them
            await self._partial_files.erase(record.id)
        try:
            await self._ingest.probed(tenant, video)
        except ServiceError as error:
            if error.status >= 500 or is_our_fault(error.code):
                return record  # the bytes are safe, and the video's own status tells the rest
            problem = Problem(code=error.code, message=error.message)
            await self._uploads.update(tenant, record.model_copy(update={"video_id": None, "error": problem}))
            raise
        return record

    async def _record(self, tenant: str, upload_id: str) -> UploadRecord:
        record = await self._uploads.get(tenant, upload_id)
        if record is None:
            raise _not_found()
        if record.error is not None:
            raise from_code(record.error.code, record.error.message)
        return record

    def _room(self, upload_id: str) -> Reservation:
        """What the whole file will take; kept for as long as the upload is."""
        return Reservation(upload_id, self._settings.upload_expiry)

    # -- one piece

    async def _take(self, piece: "_Piece", chunks: AsyncIterator[bytes], checksum: Checksum | None) -> None:
        digest = None if checksum is None else hashlib.new(checksum.algorithm, usedforsecurity=False)
        try:
            async for chunk in paced(chunks, idle_timeout=self._settings.upload_idle_timeout):
                if piece.file.offset + len(chunk) > piece.record.length:
                    raise _too_large(piece.record.length)
                piece.file.write(chunk)
                if digest is not None:
                    digest.update(chunk)
                elif piece.num_uncounted >= _CHECKPOINT:
                    await self._count(piece)
        except BaseException:
            if digest is None:  # whatever came of a piece that breaks off need not come again
                with contextlib.suppress(ServiceError):
                    await asyncio.shield(self._count(piece))
            raise
        if checksum is not None and digest is not None and digest.digest() != checksum.digest:
            raise ChecksumMismatch("checksum_mismatch", "The bytes do not have this checksum.", param="Upload-Checksum")
        await self._count(piece)

    async def _count(self, piece: "_Piece") -> None:
        """Put what came where it stays, then count it, if the upload is still this request's.

        Raises:
            ServiceError: it is not, or the store is away; what came since the last time does not count.
        """
        await piece.file.sync()
        if not await self._leases.renew(piece.lease, piece.holder):
            raise _busy()
        expires_at = time.time() + self._settings.upload_expiry
        record = piece.record.model_copy(
            update={"offset": piece.file.offset, "parts": piece.file.parts, "expires_at": expires_at}
        )
        if not await self._uploads.update(piece.tenant, record):
            raise _not_found()
        await self._quota.prolong(piece.tenant, self._room(record.id))
        piece.record = record


@dataclass(slots=True)
class _Piece:
    """A piece that is coming in; `record` has what of it counts."""

    tenant: str
    record: UploadRecord
    file: PartialFile
    lease: str
    holder: str

    @property
    def num_uncounted(self) -> int:
        return self.file.offset - self.record.offset


def _not_found() -> NotFound:
    return NotFound("upload_not_found", "There is no upload with this id, or it has expired.", param="upload_id")


def _busy() -> Locked:
    return Locked("upload_busy", "Another request is adding to this upload; ask how far it is in a moment.")


def _too_large(max_bytes: int) -> TooLarge:
    return TooLarge("upload_too_large", f"An upload may have at most {max_bytes} bytes.", param="Upload-Length")

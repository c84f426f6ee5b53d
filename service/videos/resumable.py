"""Resumable uploads: a file arrives in pieces, at any replica, and becomes a video with its last byte.

Acknowledged bytes are on disk or in a bucket; Redis holds the offset. A piece that breaks off counts up to its last
byte that arrived.
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
from service.store.partial_files import PartialFile
from service.store.records import Problem, UploadRecord
from service.store.stores import Stores
from service.videos.ingest import Ingest
from service.videos.preparation import is_service_failure
from service.videos.quota import Quota, Reservation
from service.videos.receiving import UploadHeader, with_idle_timeout

_CHECKPOINT = 8 << 20  # bytes of a piece after which they are synced and counted while the rest arrives


@dataclass(frozen=True, slots=True)
class Checksum:
    """The checksum that the client sends with a piece."""

    algorithm: Literal["sha1", "sha256"]
    digest: bytes


class Resumable:
    """Creates, continues and terminates resumable uploads."""

    def __init__(self, settings: Settings, stores: Stores, *, ingest: Ingest, quota: Quota) -> None:
        self._settings = settings
        self._uploads = stores.uploads
        self._partial_files = stores.partial_files
        self._leases = stores.leases
        self._ingest = ingest
        self._quota = quota

    async def create(self, caller: Caller, *, length: int, header: UploadHeader, metadata: str) -> UploadRecord:
        """Create an upload of `length` bytes.

        Raises:
            TooLarge: the server takes fewer bytes.
            LimitExceeded: the key's tenant would store more than its limit.
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
        reservation = self._reservation(record.id)
        await self._quota.reserve(caller, reservation, length)
        try:
            await self._partial_files.create(record.id)
            await self._uploads.create(caller.tenant, record)
        except BaseException:
            await asyncio.shield(self._quota.release(caller.tenant, reservation))
            raise
        return record

    async def get(self, caller: Caller, upload_id: str) -> UploadRecord:
        """Return an upload's record; finishes an upload that is whole and that a crash left without a video.

        Raises:
            ServiceError: there is no such upload, its file cannot be used, or the tenant would exceed its limit.
        """
        tenant = caller.tenant
        record = await self._record(tenant, upload_id)
        if not record.is_whole or record.video_id is not None:
            return record
        async with self._leases.hold(keys.upload_lease(tenant, upload_id), new_id("req")) as acquired:
            return await self._finish(caller, await self._record(tenant, upload_id)) if acquired else record

    async def append(
        self, caller: Caller, upload_id: str, chunks: AsyncIterator[bytes], *, offset: int, checksum: Checksum | None
    ) -> UploadRecord:
        """Append the bytes from `offset` on. With a checksum either all of them count, or none.

        Raises:
            ServiceError: the piece is refused, a part of the service failed, or the whole file cannot be used.
        """
        tenant = caller.tenant
        lease, holder = keys.upload_lease(tenant, upload_id), new_id("req")
        async with self._leases.hold(lease, holder) as acquired:
            if not acquired:
                raise _busy()
            record = await self._record(tenant, upload_id)
            if offset != record.offset:
                raise Conflict(
                    "offset_mismatch", f"The upload continues at byte {record.offset}.", param="Upload-Offset"
                )
            with self._ingest.receiving():
                async with self._partial_files.append(record) as file:
                    piece = _Piece(tenant, record, file, lease, holder)
                    await self._receive(piece, chunks, checksum)
            record = piece.record
            return await self._finish(caller, record) if record.is_whole else record

    async def terminate(self, tenant: str, upload_id: str) -> None:
        """Terminate an upload and erase its bytes. A video that it has become stays.

        Raises:
            NotFound: there is no such upload.
        """
        if not await self._uploads.erase(tenant, upload_id):
            raise _not_found()
        await self._quota.release(tenant, self._reservation(upload_id))
        await self._partial_files.erase(upload_id)

    # -- the whole file

    async def _finish(self, caller: Caller, record: UploadRecord) -> UploadRecord:
        """Make a video of a whole upload, unless it is one already."""
        if record.video_id is not None:
            return record
        tenant = caller.tenant
        header = UploadHeader(filename=record.filename, content_type=record.content_type)
        async with self._partial_files.whole(record) as spool:
            video, _ = await self._ingest.store(caller, spool, header, self._reservation(record.id))
        # A video that was stored before has not taken over the reservation.
        await self._quota.release(tenant, self._reservation(record.id))
        record = record.model_copy(update={"video_id": video.id})
        await self._uploads.update(tenant, record)
        with contextlib.suppress(ServiceError):  # the retention sweep removes them later
            await self._partial_files.erase(record.id)
        try:
            await self._ingest.prepare(tenant, video)
        except ServiceError as error:
            if is_service_failure(error.code):
                return record  # the bytes are stored, and the video's status has the error
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

    def _reservation(self, upload_id: str) -> Reservation:
        """The reservation for the whole file; it lasts as long as the upload."""
        return Reservation(upload_id, self._settings.upload_expiry)

    # -- one piece

    async def _receive(self, piece: "_Piece", chunks: AsyncIterator[bytes], checksum: Checksum | None) -> None:
        digest = None if checksum is None else hashlib.new(checksum.algorithm, usedforsecurity=False)
        try:
            async for chunk in with_idle_timeout(chunks, self._settings.upload_idle_timeout):
                if piece.file.offset + len(chunk) > piece.record.length:
                    raise _too_large(piece.record.length)
                piece.file.write(chunk)
                if digest is not None:
                    digest.update(chunk)
                elif piece.num_uncounted >= _CHECKPOINT:
                    await self._count(piece)
        except BaseException:
            if digest is None:  # the bytes that have arrived need not be sent again
                with contextlib.suppress(ServiceError):
                    await asyncio.shield(self._count(piece))
            raise
        if checksum is not None and digest is not None and digest.digest() != checksum.digest:
            raise ChecksumMismatch("checksum_mismatch", "The bytes do not have this checksum.", param="Upload-Checksum")
        await self._count(piece)

    async def _count(self, piece: "_Piece") -> None:
        """Sync the bytes that have arrived, then record the offset, if this request still holds the lease.

        Raises:
            ServiceError: the lease is lost, or the store cannot be reached; the bytes since the last call do not count.
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
        await self._quota.renew(piece.tenant, self._reservation(record.id))
        piece.record = record


@dataclass(slots=True)
class _Piece:
    """A piece that is being received; `record` has the part of it that counts."""

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
    return Locked("upload_busy", "Another request is adding to this upload; read its offset again in a moment.")


def _too_large(max_bytes: int) -> TooLarge:
    return TooLarge("upload_too_large", f"An upload may have at most {max_bytes} bytes.", param="Upload-Length")

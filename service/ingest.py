"""Flow 1: a file becomes a video. Receives uploads, keeps their records, and starts their preparation at once."""

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from structlog.contextvars import bind_contextvars

from service import tracing, uploads
from service.access import Caller
from service.drain import Drain
from service.encoding import Encoding, is_our_fault
from service.errors import Gone, LimitExceeded, NotFound, Overloaded, ServiceError, Unavailable, from_code
from service.fetching import Fetcher
from service.ids import new_id, video_id
from service.metrics import Metrics
from service.settings import Settings
from service.store import keys
from service.store.event_log import LogEvent
from service.store.idempotency import IdempotencyStore, Repeatable
from service.store.listing import Order, Page
from service.store.media import MediaStore, RemoteContent, SpoolFile
from service.store.records import VideoRecord
from service.store.videos import VideoStore

_PROBE_WAIT = 30.0  # seconds the reply to an upload waits for the file's facts
_ROOM_SECONDS = 60  # for which bytes are reserved; so long after a process died they are free again
_ROOM_RENEWAL = 15.0  # seconds between two signs of life of a reservation
_IDLE = 1.0  # seconds between two signs of life of a progress stream


@dataclass(frozen=True, slots=True)
class Reservation:
    """Bytes set aside for a file that is coming in, under a name, until so long after the last sign of life."""

    name: str
    seconds: int


class Ingest:
    """Videos, from their first byte on."""

    def __init__(
        self,
        *,
        settings: Settings,
        fetcher: Fetcher,
        drain: Drain,
        encoding: Encoding,
        videos: VideoStore,
        media: MediaStore,
        idempotency: IdempotencyStore,
        metrics: Metrics,
    ) -> None:
        self._settings = settings
        self._fetcher = fetcher
        self._drain = drain
        self._encoding = encoding
        self._videos = videos
        self._media = media
        self._idempotency = idempotency
        self._metrics = metrics
        self._num_receiving = 0

    # -- uploads

    async def receive(
        self,
        caller: Caller,
        chunks: AsyncIterator[bytes],
        *,
        content_type: str,
        content_length: int | None,
        filename: str | None,
        purposes: frozenset[str] | None = None,
        idempotency_key: str | None = None,
    ) -> tuple[VideoRecord, bool]:
        """Take an upload; returns its record, with the facts of the probed file, and whether it is new.

        With `purposes` the upload is a form that also says what the file is for, one of these. Without an
        idempotency key an upload can be repeated, too: the same bytes are the same video.

        Raises:
            ServiceError: the upload cannot be used, or there is no room for it now.
        """
        self._drain.check()
        max_bytes = self._settings.max_upload_bytes
        uploads.check_headers(content_type, content_length=content_length, max_bytes=max_bytes)
        announced = (content_length or 0) if idempotency_key is None else None  # the bytes may be here already
        async with self._room(caller, announced) as room:
            with self.place():
                record, is_new = await self._store(
                    caller,
                    room,
                    chunks,
                    content_type=content_type,
                    filename=filename,
                    purposes=purposes,
                    idempotency_key=idempotency_key,
                )
        return await self.probed(caller.tenant, record), is_new

    async def fetch(self, caller: Caller, url: str) -> tuple[VideoRecord, bool]:
        """Take the video that a URL leads to, as if it had been uploaded.

        Raises:
            ServiceError: as `Fetcher.open` and `receive`.
        """
        self._drain.check()
        async with self._room(caller, None) as room:
            with self.place():
                async with self._fetcher.open(url) as file:
                    record, is_new = await self._store(
                        caller, room, file.chunks, content_type=file.content_type, filename=file.filename
                    )
        return await self.probed(caller.tenant, record), is_new

    @contextlib.contextmanager
    def place(self) -> Iterator[None]:
        """A place for one more video, while its bytes come in.

        Raises:
            Overloaded: there is none.
        """
        if self._num_receiving + self._encoding.num_flights >= self._settings.max_pending_videos:
            self._metrics.admission_rejections.labels("max_pending_videos").inc()
            raise Overloaded("overloaded", "Too many videos are being prepared; try again in a moment.")
        self._num_receiving += 1
        try:
            yield
        finally:
            self._num_receiving -= 1

    async def reserve(self, caller: Caller, room: Reservation, num_bytes: int) -> None:
        """Set bytes aside, at all replicas, for a file that is coming in; or so many instead of those before.

        Raises:
            LimitExceeded: erasing videos makes room.
        """
        limit = caller.limits.stored_bytes
        if limit is not None and not await self._videos.reserve(
            caller.tenant, room.name, num_bytes, limit=limit, seconds=room.seconds
        ):
            self._metrics.admission_rejections.labels("stored_bytes").inc()
            raise LimitExceeded(
                "storage_full", f"With this upload more than {limit} bytes would be stored; erase videos first."
            )

    async def prolong(self, tenant: str, room: Reservation) -> None:
        """Give a sign of life of a reservation."""
        await self._videos.prolong(tenant, room.name, seconds=room.seconds)

    async def release(self, tenant: str, room: Reservation) -> None:
        """Give reserved bytes back, if a record has not taken their place. Nothing happens while the store is away."""
        with contextlib.suppress(Unavailable):  # they run out by themselves
            await self._videos.release(tenant, room.name)

    @contextlib.asynccontextmanager
    async def _room(self, caller: Caller, num_bytes: int | None) -> AsyncIterator[Reservation]:
        """A reservation that lasts as long as the block; None begins it with the file's own size, in `keep`."""
        room = Reservation(new_id("req"), _ROOM_SECONDS)
        if caller.limits.stored_bytes is None:
            yield room
            return
        if num_bytes is not None:
            await self.reserve(caller, room, num_bytes)
        staying = asyncio.create_task(self._stay(caller.tenant, room))
        try:
            yield room
        finally:
            staying.cancel()
            await asyncio.shield(self.release(caller.tenant, room))

    async def _stay(self, tenant: str, room: Reservation) -> None:
        while True:
            await asyncio.sleep(_ROOM_RENEWAL)
            with contextlib.suppress(Unavailable):  # the next one may be in time
                await self.prolong(tenant, room)

    async def _store(
        self,
        caller: Caller,
        room: Reservation,
        chunks: AsyncIterator[bytes],
        *,
        content_type: str,
        filename: str | None,
        purposes: frozenset[str] | None = None,
        idempotency_key: str | None = None,
    ) -> tuple[VideoRecord, bool]:
        start = time.perf_counter()
        with tracing.span("upload"):
            kept = await self._to_disk(
                caller,
                room,
                chunks,
                content_type=content_type,
                filename=filename,
                purposes=purposes,
                idempotency_key=idempotency_key,
            )
        self._metrics.video_upload.observe(time.perf_counter() - start)
        return kept

    async def _to_disk(
        self,
        caller: Caller,
        room: Reservation,
        chunks: AsyncIterator[bytes],
        *,
        content_type: str,
        filename: str | None,
        purposes: frozenset[str] | None,
        idempotency_key: str | None,
    ) -> tuple[VideoRecord, bool]:
        async with self._media.spool() as spool:
            header = await uploads.receive(
                chunks,
                spool,
                content_type=content_type,
                filename=filename,
                max_bytes=self._settings.max_upload_bytes,
                idle_timeout=self._settings.upload_idle_timeout,
                purposes=purposes,
            )
            if idempotency_key is not None:
                known_id = video_id(caller.tenant, spool.sha256)
                request = Repeatable.of(idempotency_key, method="POST", path="/v1/videos", body_sha256=spool.sha256)
                await self._idempotency.claim(caller.tenant, request, result_id=known_id)
            return await self.keep(caller, spool, header, room)

    async def keep(
        self, caller: Caller, spool: SpoolFile, header: uploads.UploadHeader, room: Reservation
    ) -> tuple[VideoRecord, bool]:
        """Make a received file permanent; returns its record, which takes the room, and whether it is new.

        Raises:
            LimitExceeded: the key's tenant has no room for it.
            Unavailable: the store is away, or the same video was erased this moment.
        """
        tenant = caller.tenant
        if await self._videos.get(tenant, video_id(tenant, spool.sha256)) is None:
            await self.reserve(caller, room, spool.num_bytes)
        sha256 = await self._media.commit(spool, tenant)
        now, ttl = time.time(), self._settings.media_ttl
        record = VideoRecord(
            id=video_id(tenant, sha256),
            sha256=sha256,
            bytes=spool.num_bytes,
            filename=header.filename,
            content_type=header.content_type,
            created_at=now,
            expires_at=None if ttl is None else now + ttl,
        )
        bind_contextvars(video_id=record.id)
        if await self._videos.create(tenant, record, reservation=room.name):
            return record, True
        known = await self._videos.get(tenant, record.id)
        if known is None:  # erased this very moment
            raise Unavailable("try_again", "The same video was erased while it was uploaded; send it again.")
        if known.status == "failed":  # another try of the same bytes
            await self._videos.update(tenant, record)
            return record, True
        filename = record.filename if known.filename == uploads.UNNAMED else known.filename
        if (known.expires_at, known.filename) != (record.expires_at, filename):  # and are kept from now on
            known = known.model_copy(update={"expires_at": record.expires_at, "filename": filename})
            await self._videos.update(tenant, known)
        return known, False

    async def probed(self, tenant: str, record: VideoRecord) -> VideoRecord:
        """Start a video's preparation; returns its record with the facts of the file, if they come soon.

        Raises:
            ServiceError: the file cannot be used and was erased again, or a part of the service failed.
        """
        if record.num_frames is not None:
            return record
        flight = await self._encoding.begin(tenant, record)
        assert flight.task is not None
        either: set[asyncio.Future[Any]] = {flight.task, flight.probed}
        done, _ = await asyncio.wait(either, timeout=_PROBE_WAIT, return_when=asyncio.FIRST_COMPLETED)
        if not done:
            return await self.get(tenant, record.id)  # the reply goes without facts; they follow
        if flight.probed.done():
            return flight.probed.result()
        error = flight.task.exception()
        if isinstance(error, ServiceError) and not is_our_fault(error.code):
            with contextlib.suppress(NotFound):  # another upload of the same bytes was quicker
                await self.erase(tenant, record.id)  # not a video at all: nothing to keep
        if error is not None:
            raise error
        return await self.get(tenant, record.id)  # another replica has filled it, or its features were still there

    # -- records

    async def get(self, tenant: str, video_id: str) -> VideoRecord:
        """A video's record; takes up its preparation if a crash left it lying.

        Raises:
            NotFound: there is no such video.
        """
        record = await self._videos.get(tenant, video_id)
        if record is None:
            raise NotFound("video_not_found", "There is no video with this id.", param="video_id")
        if record.status in {"uploaded", "processing"} and self._encoding.ready:
            await self._encoding.begin(tenant, record)
        return record

    async def page(
        self, tenant: str, *, limit: int, after: str | None, order: Order = "desc"
    ) -> tuple[list[VideoRecord], Page]:
        """Videos by time of creation."""
        page = await self._videos.page(tenant, limit=limit, after=after, order=order)
        return await self._videos.get_many(tenant, page.ids), page

    async def erase(self, tenant: str, video_id: str) -> None:
        """Erase a video's file, pictures, features and record. Its sessions are the caller's.

        Raises:
            NotFound: there is no such video.
        """
        record = await self._videos.get(tenant, video_id)
        if record is None:
            raise NotFound("video_not_found", "There is no video with this id.", param="video_id")
        await self._encoding.erase(tenant, video_id)
        await self._videos.erase(tenant, video_id)
        await self._media.erase(tenant, record.sha256)

    async def content(self, tenant: str, record: VideoRecord, *, byte_range: str | None) -> Path | RemoteContent:
        """A video's file, to be sent.

        Raises:
            Gone: it is not kept any more.
        """
        found = await self._media.content(tenant, record.sha256, byte_range=byte_range)
        if found is None:
            raise Gone("video_gone", "The video's file is gone; upload it again.", param="video_id")
        return found

    async def frame(self, tenant: str, record: VideoRecord, index: int) -> bytes:
        """The picture of one of a video's sampled frames, as JPEG.

        Raises:
            NotFound: there is none, or not yet.
        """
        picture = await self._media.frame(tenant, record.sha256, index)
        if picture is None:
            raise NotFound("frame_not_found", "There is no such frame (yet).", param="index")
        return picture

    async def follow(self, tenant: str, video_id: str, *, after: int) -> AsyncGenerator[LogEvent | None, None]:
        """A video's progress events up to `ready` or `failed`; None now and then while nothing happens."""
        while True:
            record = await self.get(tenant, video_id)
            key = keys.video_events(tenant, video_id)
            events = await self._videos.events.read(key, after=after, block=_IDLE)
            for event in events:
                yield event
                after = event.number
                if event.name in {"ready", "failed"}:
                    return
            if events:
                continue
            if record.status in {"ready", "failed"}:  # its events have expired, or a reader has them all
                yield _ending(record, number=after + 1)
                return
            yield None


def _ending(record: VideoRecord, *, number: int) -> LogEvent:
    data: dict[str, object] = {"video_id": record.id, "fraction": 1.0}
    if record.error is not None:
        data |= from_code(record.error.code, record.error.message).envelope()
    return LogEvent(number, record.status, data)

"""Flow 1: a file becomes a video. Receives uploads, keeps their records, and starts their preparation at once."""

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, Callable, Iterator
from pathlib import Path
from typing import Any

from structlog.contextvars import bind_contextvars

from service.access.callers import Caller
from service.errors import Gone, NotFound, Overloaded, ServiceError, Unavailable, from_code
from service.ids import video_id
from service.observability import tracing
from service.observability.metrics import Metrics
from service.settings import Settings
from service.store import keys
from service.store.event_log import LogEvent
from service.store.idempotency import IdempotencyStore, Repeatable
from service.store.listing import Order, Page
from service.store.media import MediaStore, RemoteContent, SpoolFile
from service.store.records import VideoRecord
from service.store.videos import VideoStore
from service.videos import receiving as uploads
from service.videos.fetching import Fetcher
from service.videos.preparation import Encoding, is_our_fault
from service.videos.quota import Quota, Reservation
from service.videos.receiving import UploadBody

_PROBE_WAIT = 30.0  # seconds the reply to an upload waits for the file's facts
_IDLE = 1.0  # seconds between two signs of life of a progress stream


class Ingest:
    """Videos, from their first byte on."""

    def __init__(
        self,
        *,
        settings: Settings,
        fetcher: Fetcher,
        check_open: Callable[[], None],
        encoding: Encoding,
        quota: Quota,
        videos: VideoStore,
        media: MediaStore,
        idempotency: IdempotencyStore,
        metrics: Metrics,
    ) -> None:
        self._settings = settings
        self._fetcher = fetcher
        self._check_open = check_open
        self._encoding = encoding
        self._quota = quota
        self._videos = videos
        self._media = media
        self._idempotency = idempotency
        self._metrics = metrics
        self._num_receiving = 0

    # -- uploads

    async def receive(
        self, caller: Caller, body: UploadBody, *, idempotency_key: str | None = None
    ) -> tuple[VideoRecord, bool]:
        """Take an upload; returns its record, with the facts of the probed file, and whether it is new.

        Without an idempotency key an upload can be repeated, too: the same bytes are the same video.

        Raises:
            ServiceError: the upload cannot be used, or there is no room for it now.
        """
        self._check_open()
        uploads.check_headers(body, max_bytes=self._settings.max_upload_bytes)
        announced = (body.content_length or 0) if idempotency_key is None else None  # the bytes may be here already
        async with self._quota.hold(caller, announced) as room:
            with self.place():
                record, is_new = await self._store(caller, room, body, idempotency_key=idempotency_key)
        return await self.probed(caller.tenant, record), is_new

    async def fetch(self, caller: Caller, url: str) -> tuple[VideoRecord, bool]:
        """Take the video that a URL leads to, as if it had been uploaded.

        Raises:
            ServiceError: as `Fetcher.open` and `receive`.
        """
        self._check_open()
        async with self._quota.hold(caller, None) as room:
            with self.place():
                async with self._fetcher.open(url) as body:
                    record, is_new = await self._store(caller, room, body)
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

    async def _store(
        self, caller: Caller, room: Reservation, body: UploadBody, *, idempotency_key: str | None = None
    ) -> tuple[VideoRecord, bool]:
        settings, start = self._settings, time.perf_counter()
        with tracing.span("upload"):
            async with self._media.spool() as spool:
                header = await uploads.receive(
                    body, spool, max_bytes=settings.max_upload_bytes, idle_timeout=settings.upload_idle_timeout
                )
                if idempotency_key is not None:
                    known_id = video_id(caller.tenant, spool.sha256)
                    request = Repeatable.of(idempotency_key, method="POST", path="/v1/videos", body_sha256=spool.sha256)
                    await self._idempotency.claim(caller.tenant, request, result_id=known_id)
                kept = await self.keep(caller, spool, header, room)
        self._metrics.video_upload.observe(time.perf_counter() - start)
        return kept

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
            await self._quota.reserve(caller, room, spool.num_bytes)
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

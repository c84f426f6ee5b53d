"""Receives videos, keeps their records and starts their preparation at once."""

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from structlog.contextvars import bind_contextvars

from service.access.callers import Caller
from service.errors import Gone, NotFound, Overloaded, ServiceError, Unavailable
from service.ids import video_id
from service.observability import tracing
from service.observability.metrics import Metrics
from service.settings import Settings
from service.store.event_log import LogEvent
from service.store.idempotency import Repeatable
from service.store.listing import Order, Page
from service.store.media import RemoteContent, SpoolFile
from service.store.records import VideoRecord
from service.store.stores import Stores
from service.videos import receiving
from service.videos.fetching import Fetcher
from service.videos.preparation import Preparation, is_service_failure
from service.videos.progress import follow_progress
from service.videos.quota import Quota, Reservation
from service.videos.receiving import UploadBody, UploadHeader

_FACTS_TIMEOUT = 30.0  # seconds that the response to an upload waits for the file's facts


class Ingest:
    """Receives videos by upload and by URL, and reads and erases their records and files.

    `check_open` raises an `Unavailable` when the replica accepts no new work.
    """

    def __init__(
        self,
        settings: Settings,
        stores: Stores,
        *,
        preparation: Preparation,
        fetcher: Fetcher,
        quota: Quota,
        metrics: Metrics,
        check_open: Callable[[], None],
    ) -> None:
        self._settings = settings
        self._videos = stores.videos
        self._media = stores.media
        self._idempotency = stores.idempotency
        self._preparation = preparation
        self._fetcher = fetcher
        self._quota = quota
        self._metrics = metrics
        self._check_open = check_open
        self._num_receiving = 0

    # -- uploads

    async def receive(
        self, caller: Caller, body: UploadBody, *, idempotency_key: str | None = None
    ) -> tuple[VideoRecord, bool]:
        """Receive an upload; returns its record, with the facts of the file, and whether the video is new.

        An upload can be repeated without an idempotency key, too: the same bytes are the same video.

        Raises:
            ServiceError: the upload cannot be used, or the server cannot take it now.
        """
        self._check_open()
        receiving.check_headers(body, max_bytes=self._settings.max_upload_bytes)
        # With an idempotency key the video may be stored already and need no bytes.
        num_bytes = (body.content_length or 0) if idempotency_key is None else None
        async with self._quota.reserving(caller, num_bytes) as reservation:
            with self.receiving():
                record, is_new = await self._receive(caller, reservation, body, idempotency_key=idempotency_key)
        return await self.prepare(caller.tenant, record), is_new

    async def fetch(self, caller: Caller, url: str) -> tuple[VideoRecord, bool]:
        """Fetch a video from a URL; otherwise as `receive`.

        Raises:
            ServiceError: as `Fetcher.open` and `receive`.
        """
        self._check_open()
        async with self._quota.reserving(caller, None) as reservation:
            with self.receiving():
                async with self._fetcher.open(url) as body:
                    record, is_new = await self._receive(caller, reservation, body)
        return await self.prepare(caller.tenant, record), is_new

    @contextlib.contextmanager
    def receiving(self) -> Iterator[None]:
        """Count one more video as pending while its bytes arrive.

        Raises:
            Overloaded: too many videos are being received or prepared.
        """
        if self._num_receiving + self._preparation.num_jobs >= self._settings.max_pending_videos:
            self._metrics.admission_rejections.labels("max_pending_videos").inc()
            raise Overloaded("overloaded", "Too many videos are being prepared; try again in a moment.")
        self._num_receiving += 1
        try:
            yield
        finally:
            self._num_receiving -= 1

    async def _receive(
        self, caller: Caller, reservation: Reservation, body: UploadBody, *, idempotency_key: str | None = None
    ) -> tuple[VideoRecord, bool]:
        settings, start = self._settings, time.perf_counter()
        with tracing.span("upload"):
            async with self._media.spool() as spool:
                header = await receiving.receive(
                    body, spool, max_bytes=settings.max_upload_bytes, idle_timeout=settings.upload_idle_timeout
                )
                if idempotency_key is not None:
                    known_id = video_id(caller.tenant, spool.sha256)
                    request = Repeatable.of(idempotency_key, method="POST", path="/v1/videos", body_sha256=spool.sha256)
                    await self._idempotency.claim(caller.tenant, request, result_id=known_id)
                stored = await self.store(caller, spool, header, reservation)
        self._metrics.video_upload.observe(time.perf_counter() - start)
        return stored

    async def store(
        self, caller: Caller, spool: SpoolFile, header: UploadHeader, reservation: Reservation
    ) -> tuple[VideoRecord, bool]:
        """Store a received file and its record, which takes over the reserved bytes; returns whether it is new.

        Raises:
            LimitExceeded: the key's tenant would store more than its limit.
            Unavailable: the store cannot be reached, or the same video was erased meanwhile.
        """
        tenant = caller.tenant
        if await self._videos.get(tenant, video_id(tenant, spool.sha256)) is None:
            await self._quota.reserve(caller, reservation, spool.num_bytes)
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
        if await self._videos.create(tenant, record, reservation=reservation.name):
            return record, True
        known = await self._videos.get(tenant, record.id)
        if known is None:  # it was erased between the two calls
            raise Unavailable("try_again", "The same video was erased while it was uploaded; send it again.")
        if known.status == "failed":  # the upload is a new attempt
            await self._videos.update(tenant, record)
            return record, True
        filename = record.filename if known.filename == receiving.UNNAMED else known.filename
        if (known.expires_at, known.filename) != (record.expires_at, filename):  # the retention time starts again
            known = known.model_copy(update={"expires_at": record.expires_at, "filename": filename})
            await self._videos.update(tenant, known)
        return known, False

    async def prepare(self, tenant: str, record: VideoRecord) -> VideoRecord:
        """Start a video's preparation; returns its record, with the facts of the file if they are known in time.

        Raises:
            ServiceError: the file cannot be used and was erased again, or a part of the service failed.
        """
        if record.num_frames is not None:
            if record.status == "ready":  # it was uploaded before, maybe at a replica with other models
                return await self._preparation.start_missing(tenant, record)
            return record
        job = await self._preparation.start(tenant, record)
        assert job.task is not None
        either: set[asyncio.Future[Any]] = {job.task, job.probed}
        done, _ = await asyncio.wait(either, timeout=_FACTS_TIMEOUT, return_when=asyncio.FIRST_COMPLETED)
        if not done:
            return await self.get(tenant, record.id)
        if job.probed.done():
            return job.probed.result()
        error = job.task.exception()
        if isinstance(error, ServiceError) and not is_service_failure(error.code):
            with contextlib.suppress(NotFound):  # another upload of the same bytes has erased it
                await self.erase(tenant, record.id)  # the file is not a video
        if error is not None:
            raise error
        return await self.get(tenant, record.id)  # another replica has prepared it, or its features were still cached

    # -- records and files

    async def get(self, tenant: str, video_id: str) -> VideoRecord:
        """Return a video's record; starts its preparation again if a crash has interrupted it.

        Raises:
            NotFound: there is no such video.
        """
        record = await self._videos.get(tenant, video_id)
        if record is None:
            raise _not_found()
        if record.status in {"uploaded", "processing"} and self._preparation.ready:
            await self._preparation.start(tenant, record)
        return record

    async def page(
        self, tenant: str, *, limit: int, after: str | None, order: Order = "desc"
    ) -> tuple[list[VideoRecord], Page]:
        """Return a page of videos by time of creation."""
        page = await self._videos.page(tenant, limit=limit, after=after, order=order)
        return await self._videos.get_many(tenant, page.ids), page

    async def erase(self, tenant: str, video_id: str) -> None:
        """Erase a video's file, thumbnails, features and record. The caller must erase its sessions.

        Raises:
            NotFound: there is no such video.
        """
        record = await self._videos.get(tenant, video_id)
        if record is None:
            raise _not_found()
        await self._preparation.erase_features(tenant, video_id)
        await self._videos.erase(tenant, video_id)
        await self._media.erase(tenant, record.sha256)

    async def content(self, tenant: str, record: VideoRecord, *, byte_range: str | None) -> Path | RemoteContent:
        """Return a video's file, to be sent to a client.

        Raises:
            Gone: the file has been removed.
        """
        found = await self._media.content(tenant, record.sha256, byte_range=byte_range)
        if found is None:
            raise Gone("video_gone", "The video's file is gone; upload it again.", param="video_id")
        return found

    async def frame(self, tenant: str, record: VideoRecord, index: int) -> bytes:
        """Return the thumbnail of one of a video's sampled frames, a JPEG.

        Raises:
            NotFound: there is no such frame, or the video is not prepared yet.
        """
        picture = await self._media.frame(tenant, record.sha256, index)
        if picture is None:
            raise NotFound("frame_not_found", "There is no such frame (yet).", param="index")
        return picture

    def follow(self, tenant: str, video_id: str, *, after: int) -> AsyncGenerator[Sequence[LogEvent], None]:
        """Yield a video's progress events after number `after`, up to `ready` or `failed`."""
        return follow_progress(
            self._videos, tenant, video_id, after=after, read_record=lambda: self.get(tenant, video_id)
        )


def _not_found() -> NotFound:
    return NotFound("video_not_found", "There is no video with this id.", param="video_id")

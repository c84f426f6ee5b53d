"""Removes uploaded files by age and by total size. Records, features and sessions stay.

It also removes the partial files of resumable uploads that have expired.
"""

import asyncio
import time

import structlog

from service.errors import ServiceError
from service.ids import new_id, video_id
from service.observability.metrics import Metrics
from service.settings import Settings
from service.store import keys
from service.store.media import StoredFile
from service.store.stores import Stores

_log = structlog.get_logger(__name__)

_PARTIAL_MARGIN = 60.0  # seconds: an upload's record, renewed after its bytes are written, expires that much later


class Retention:
    """Removes files that are too old, and the oldest ones while all take too much. One replica at a time sweeps."""

    def __init__(self, settings: Settings, stores: Stores, *, metrics: Metrics) -> None:
        self._interval = settings.retention_interval
        self._ttl = settings.media_ttl
        self._max_bytes = settings.media_max_bytes
        self._partial_age = settings.upload_expiry + _PARTIAL_MARGIN
        self._media = stores.media
        self._partial_files = stores.partial_files
        self._videos = stores.videos
        self._leases = stores.leases
        self._metrics = metrics
        self._replica = new_id("rep")
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Sweep at regular intervals from now on."""
        self._task = asyncio.create_task(self._sweep_forever(), name="retention")

    async def close(self) -> None:
        """Stop sweeping."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def sweep(self) -> None:
        """Sweep once; the uploaded files only if no other replica is sweeping them.

        Raises:
            ServiceError: the store or the files cannot be reached.
        """
        # Every replica does this: partial files may lie where no other replica can see them.
        await self._partial_files.sweep(older_than=self._partial_age)
        if self._ttl is None and self._max_bytes is None:
            return
        async with self._leases.hold(keys.retention_lease(), self._replica) as acquired:
            if acquired:
                await self._sweep_media()

    async def _sweep_forever(self) -> None:
        while True:
            try:
                await self.sweep()
            except ServiceError:
                pass  # the next sweep tries again
            except Exception:  # noqa: BLE001 - an error must not stop the sweeps, or the disk fills up
                _log.exception("retention_failed")
            await asyncio.sleep(self._interval)

    async def _sweep_media(self) -> None:
        kept = sorted(await self._media.stored(), key=lambda file: file.modified)
        if self._ttl is not None:
            oldest = time.time() - self._ttl
            kept = [file for file in kept if file.modified >= oldest or not await self._remove(file, "ttl")]
        num_bytes = sum(file.num_bytes for file in kept)
        if self._max_bytes is not None and num_bytes > self._max_bytes:
            in_session = {file: await self._is_in_session(file) for file in kept}
            for file in sorted(kept, key=in_session.__getitem__):  # a stable sort: the oldest of each kind comes first
                if num_bytes <= self._max_bytes:
                    break
                if await self._remove(file, "quota"):
                    num_bytes -= file.num_bytes
        self._metrics.media_bytes.set(num_bytes)

    async def _is_in_session(self, file: StoredFile) -> bool:
        return bool(await self._videos.session_ids(file.tenant, video_id(file.tenant, file.sha256)))

    async def _remove(self, file: StoredFile, reason: str) -> bool:
        """Remove a file; returns False for a file that is being prepared, which stays."""
        record = await self._videos.get(file.tenant, video_id(file.tenant, file.sha256))
        if record is not None and record.status in {"uploaded", "processing"}:
            return False
        await self._media.erase(file.tenant, file.sha256)
        self._metrics.media_removed.labels(reason).inc()
        _log.info("file_removed", video_id=video_id(file.tenant, file.sha256), reason=reason, num_bytes=file.num_bytes)
        return True

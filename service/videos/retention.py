"""How long uploaded files are kept: by age, and by how much all of them take. Records, features and sessions stay.

What is left of uploads in pieces that nobody went on with goes, too.
"""

import asyncio
import time

import structlog

from service.errors import ServiceError
from service.ids import new_id, video_id
from service.observability.metrics import Metrics
from service.settings import Settings
from service.store import keys
from service.store.leases import Leases
from service.store.media import MediaStore, StoredFile
from service.store.partial_files import PartialFiles
from service.store.videos import VideoStore

_log = structlog.get_logger(__name__)

_PARTIAL_MARGIN = 60.0  # seconds that an upload's record, renewed after its bytes are on disk, may outlive them


class Retention:
    """Removes files whose time is over, and the oldest where they take too much. One replica at a time looks."""

    def __init__(
        self,
        *,
        settings: Settings,
        media: MediaStore,
        partial_files: PartialFiles,
        videos: VideoStore,
        leases: Leases,
        metrics: Metrics,
    ) -> None:
        self._interval = settings.retention_interval
        self._ttl = settings.media_ttl
        self._max_bytes = settings.media_max_bytes
        self._partial_age = settings.upload_expiry + _PARTIAL_MARGIN
        self._media = media
        self._partial_files = partial_files
        self._videos = videos
        self._leases = leases
        self._metrics = metrics
        self._replica = new_id("rep")
        self._loop: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Look now and then."""
        self._loop = asyncio.create_task(self._look_for_ever(), name="retention")

    async def close(self) -> None:
        """Stop looking."""
        if self._loop is not None:
            self._loop.cancel()
            await asyncio.gather(self._loop, return_exceptions=True)

    async def sweep(self) -> None:
        """Look once; at what replicas share, unless another one is at it.

        Raises:
            ServiceError: the store or the files are away.
        """
        await self._partial_files.sweep(older_than=self._partial_age)  # where no one else may see them
        if self._ttl is None and self._max_bytes is None:
            return
        async with self._leases.hold(keys.retention_lease(), self._replica) as is_ours:
            if is_ours:
                await self._sweep()

    async def _look_for_ever(self) -> None:
        while True:
            try:
                await self.sweep()
            except ServiceError:
                pass  # another time
            except Exception:  # noqa: BLE001  a mistake here must not let the disk fill up in silence for ever
                _log.exception("retention_failed")
            await asyncio.sleep(self._interval)

    async def _sweep(self) -> None:
        kept = sorted(await self._media.stored(), key=lambda file: file.modified)
        if self._ttl is not None:
            oldest = time.time() - self._ttl
            kept = [file for file in kept if file.modified >= oldest or not await self._remove(file, "ttl")]
        num_bytes = sum(file.num_bytes for file in kept)
        if self._max_bytes is not None and num_bytes > self._max_bytes:
            needed = {file: await self._is_needed(file) for file in kept}
            for file in sorted(kept, key=needed.__getitem__):  # stable: within each kind the oldest comes first
                if num_bytes <= self._max_bytes:
                    break
                if await self._remove(file, "quota"):
                    num_bytes -= file.num_bytes
        self._metrics.media_bytes.set(num_bytes)

    async def _is_needed(self, file: StoredFile) -> bool:
        return bool(await self._videos.session_ids(file.tenant, video_id(file.tenant, file.sha256)))

    async def _remove(self, file: StoredFile, reason: str) -> bool:
        """Remove a file, unless it is being prepared: what was acknowledged a moment ago is used first."""
        record = await self._videos.get(file.tenant, video_id(file.tenant, file.sha256))
        if record is not None and record.status in {"uploaded", "processing"}:
            return False
        await self._media.erase(file.tenant, file.sha256)
        self._metrics.media_removed.labels(reason).inc()
        _log.info("file_removed", video_id=video_id(file.tenant, file.sha256), reason=reason, num_bytes=file.num_bytes)
        return True

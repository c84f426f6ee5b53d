"""The progress of a video's preparation: reported by the replica that does it, followed from any replica.

A video's event log has `decode` and `encode` events with a fraction, and ends with `ready` or `failed`.
"""

from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from dataclasses import dataclass

from service.errors import ServiceError, from_code
from service.store.event_log import LogEvent
from service.store.records import VideoRecord
from service.store.videos import VideoStore

_ENDINGS = {"ready", "failed"}
_READ_TIMEOUT = 1.0  # seconds to wait for an event before the record is checked again


@dataclass(frozen=True, kw_only=True, slots=True)
class PreparationProgress:
    """How far a video's preparation is."""

    video_id: str
    stage: str
    """`decode`, `encode`, `ready` or `failed`."""
    fraction: float
    """Of the stage, from 0 to 1."""


class ProgressReporter:
    """Reports one job's progress to its listeners, and to the video's event log where `is_logged`."""

    def __init__(self, videos: VideoStore, tenant: str, video_id: str, *, is_logged: bool) -> None:
        self._videos = videos
        self._tenant = tenant
        self._video_id = video_id
        self._is_logged = is_logged
        self._num_events = 0
        self._listeners: list[Callable[[PreparationProgress], None]] = []

    def add_listener(self, listener: Callable[[PreparationProgress], None]) -> None:
        """Call `listener` with every report from now on."""
        self._listeners.append(listener)

    async def open_log(self) -> None:
        """Continue the log of an interrupted preparation; restart the log of a finished one."""
        if not self._is_logged:
            return
        last = await self._videos.last_progress(self._tenant, self._video_id)
        if last is not None and last.name in _ENDINGS:
            await self._videos.restart_progress(self._tenant, self._video_id)
            last = None
        self._num_events = last.number if last is not None else 0

    async def report(self, stage: str, fraction: float, *, error: ServiceError | None = None) -> None:
        """Report that `fraction` of a stage is done; an error goes with the stage `failed`.

        Raises:
            Unavailable: the store cannot be reached.
        """
        for listener in self._listeners:
            listener(PreparationProgress(video_id=self._video_id, stage=stage, fraction=fraction))
        if not self._is_logged:
            return
        self._num_events += 1
        data: dict[str, object] = {"video_id": self._video_id, "fraction": round(fraction, 4)}
        if error is not None:
            data |= error.envelope()
        await self._videos.progress(self._tenant, self._video_id, LogEvent(self._num_events, stage, data))


async def follow_progress(
    videos: VideoStore, tenant: str, video_id: str, *, after: int, read_record: Callable[[], Awaitable[VideoRecord]]
) -> AsyncGenerator[Sequence[LogEvent], None]:
    """Yield the events of a video's log after number `after`, up to `ready` or `failed`, in batches as they arrive.

    `read_record` returns the video's record. It is called before each wait, so that a preparation that a crash has
    interrupted is started again, and so that the end is known where the log has expired.

    Raises:
        NotFound: the video was erased.
    """
    async with videos.follow(tenant, video_id, after=after) as log:
        while True:
            record = await read_record()
            events = await log.next(timeout=_READ_TIMEOUT)
            if events:
                yield events
                after = events[-1].number
                if events[-1].name in _ENDINGS:
                    return
            elif record.status in _ENDINGS:  # the log has expired, or its end was read before
                yield [_ending(record, number=after + 1)]
                return


def _ending(record: VideoRecord, *, number: int) -> LogEvent:
    data: dict[str, object] = {"video_id": record.id, "fraction": 1.0}
    if record.error is not None:
        data |= from_code(record.error.code, record.error.message).envelope()
    return LogEvent(number, record.status, data)

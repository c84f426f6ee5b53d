"""Features on demand: the cache first, else one filling (decode, encode, keep) that everybody who needs it shares.

In this process a filling is a shared task; across replicas a lease says who does it, and the others wait for it.
"""

import asyncio
import contextlib
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field, replace

import structlog
from structlog.contextvars import bind_contextvars

from model.features import PackedFeatures, fingerprint
from model.video.pixels import PREPROCESSING_VERSION
from model.video.spec import FrameSpec, VideoFacts
from service.decoding.decoder import DecodedVideo, DecodeEvent, DecodeFailed, Decoder, VideoRejected
from service.decoding.protocol import Probed
from service.errors import Fault, Gone, InternalError, NotFound, ServiceError, Unavailable, fault_of, from_code
from service.ids import new_id
from service.observability import tracing
from service.observability.metrics import Metrics
from service.store import keys
from service.store.event_log import LogEvent
from service.store.features import FeatureCache
from service.store.leases import Leases
from service.store.media import MediaStore
from service.store.records import FrameRequest, Problem, SampledFrame, VideoRecord
from service.store.videos import VideoStore
from service.workers.pool import Pool
from service.workers.protocol import Encode, ModelInfo

_log = structlog.get_logger(__name__)

MODEL_WAIT = 30.0  # seconds that work waits for the model to be loaded
_POLL = 0.2

DEFAULT_FRAMES = FrameRequest()
"""The model's own frame spec."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Progress:
    """How far a video is: stage `decode` or `encode`, `ready` or `failed`, and a fraction of the stage."""

    video_id: str
    stage: str
    fraction: float


@dataclass(slots=True, eq=False)
class Flight:
    """One filling, shared by all who need its result."""

    tenant: str
    record: VideoRecord
    spec: FrameSpec
    info: ModelInfo
    key: str
    is_default: bool
    """Of the frames that the video's own record tells of."""
    probed: asyncio.Future[VideoRecord] = field(default_factory=lambda: asyncio.get_running_loop().create_future())
    listeners: list[Callable[[Progress], None]] = field(default_factory=list)
    task: "asyncio.Task[PackedFeatures] | None" = None
    num_events: int = 0


def is_our_fault(code: str) -> bool:
    """Whether a video failed because of us, so that another try may go well."""
    return fault_of(code) is not Fault.CLIENT


def check_usable(record: VideoRecord) -> None:
    """Refuse a video that failed by its own fault.

    Raises:
        ServiceError: what it failed with.
    """
    if record.error is not None and not is_our_fault(record.error.code):
        raise from_code(record.error.code, record.error.message)


class Encoding:
    """The features of videos, each computed once."""

    def __init__(
        self,
        *,
        pool: Pool,
        decoder: Decoder,
        videos: VideoStore,
        features: FeatureCache,
        media: MediaStore,
        leases: Leases,
        metrics: Metrics,
    ) -> None:
        self._pool = pool
        self._decoder = decoder
        self._videos = videos
        self._features = features
        self._media = media
        self._leases = leases
        self._metrics = metrics
        self._replica = new_id("rep")
        self._flights: dict[str, Flight] = {}

    @property
    def num_flights(self) -> int:
        """Videos being prepared here."""
        return len(self._flights)

    @property
    def ready(self) -> bool:
        """Whether a video could be encoded now."""
        return self._pool.ready

    async def close(self) -> None:
        """Give up what is being prepared; another replica, or the next start, takes it up."""
        tasks = [flight.task for flight in self._flights.values() if flight.task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def model(self) -> ModelInfo:
        """The loaded model; waits for it within bounds.

        Raises:
            Unavailable: it is not there yet.
        """
        try:
            return await self._pool.info(timeout=MODEL_WAIT)
        except TimeoutError:
            raise Unavailable("model_unavailable", "The model is not loaded yet; try again in a moment.") from None

    async def ensure(
        self,
        tenant: str,
        record: VideoRecord,
        frames: FrameRequest,
        *,
        on_progress: Callable[[Progress], None] | None = None,
    ) -> tuple[str, PackedFeatures]:
        """A video's features and their key, from the cache or computed now.

        Raises:
            ServiceError: the video cannot be used, or its file is gone, or a part of the service failed.
        """
        check_usable(record)
        info = await self.model()
        flight = self._flight(tenant, record, frames, info)
        if flight.task is None:
            cached = await self._features.get(flight.key, shape=info.feature_shape)
            if cached is not None:
                if on_progress is not None:
                    on_progress(Progress(video_id=record.id, stage="ready", fraction=1.0))
                return flight.key, cached
        flight = self._launch(flight)
        if on_progress is not None:
            flight.listeners.append(on_progress)
        assert flight.task is not None
        return flight.key, await asyncio.shield(flight.task)

    async def check_there(self, tenant: str, record: VideoRecord, frames: FrameRequest) -> None:
        """Refuse a video of which neither the features nor the file are left.

        Raises:
            Gone: so it is.
        """
        if await self._media.exists(tenant, record.sha256):
            return
        flight = self._flight(tenant, record, frames, await self.model())
        if flight.task is None and not await self._features.exists(flight.key):
            raise _gone()

    async def erase(self, tenant: str, video_id: str) -> None:
        """Erase all cached features of a video.

        Raises:
            Unavailable: they may still be there.
        """
        await self._features.erase(await self._videos.features_keys(tenant, video_id))

    async def begin(self, tenant: str, record: VideoRecord) -> Flight:
        """Start preparing a video's own frames, or join in; does not wait."""
        return self._launch(self._flight(tenant, record, DEFAULT_FRAMES, await self.model()))

    def _flight(self, tenant: str, record: VideoRecord, frames: FrameRequest, info: ModelInfo) -> Flight:
        spec = replace(info.frame_spec, count=frames.count or info.frame_spec.count, start=frames.start, end=frames.end)
        made = fingerprint(
            family=info.family,
            checkpoint_digest=info.checkpoint_digest,
            frame_spec=spec,
            pixel_spec=info.pixel_spec,
            preprocessing_version=PREPROCESSING_VERSION,
            dtype=info.dtype,
        )
        key = keys.features(tenant, made, record.sha256)
        return self._flights.get(key) or Flight(tenant, record, spec, info, key, is_default=spec == info.frame_spec)

    def _launch(self, flight: Flight) -> Flight:
        launched = self._flights.setdefault(flight.key, flight)
        if launched.task is None:
            launched.task = asyncio.create_task(self._fill(launched), name=f"fill {launched.record.id}")
            launched.task.add_done_callback(lambda task: self._landed(launched, task))
        return launched

    def _landed(self, flight: Flight, task: "asyncio.Task[PackedFeatures]") -> None:
        del self._flights[flight.key]
        error = None if task.cancelled() else task.exception()
        if error is not None and not isinstance(error, ServiceError):
            _log.error("video_failed_unexpectedly", video_id=flight.record.id, tenant=flight.tenant, exc_info=error)

    # -- one filling

    async def _fill(self, flight: Flight) -> PackedFeatures:
        bind_contextvars(tenant=flight.tenant, video_id=flight.record.id)  # of this task; it outlives who began it
        while True:
            async with self._leases.hold(keys.fill_lease(flight.key), self._replica) as is_ours:
                if is_ours:
                    return await self._already_filled(flight) or await self._compute(flight)
            await asyncio.sleep(_POLL)
            if await self._features.exists(flight.key) and (cached := await self._already_filled(flight)):
                return cached

    async def _already_filled(self, flight: Flight) -> PackedFeatures | None:
        """What the last holder of the lease left; completes the record if that one died before it could."""
        cached = await self._features.get(flight.key, shape=flight.info.feature_shape)
        if cached is None:
            return None
        if flight.is_default and flight.record.num_frames is None:  # as it was when we began to wait
            flight.record = await self._videos.get(flight.tenant, flight.record.id) or flight.record
            if flight.record.num_frames is None:
                return None
        if flight.record.status != "ready":
            await self._complete(flight, cached.frame_indices, cached.timestamps)
        return cached

    async def _compute(self, flight: Flight) -> PackedFeatures:
        await self._open_progress(flight)
        try:
            decoded = await self._decode(flight)
            packed = await self._encode(flight, decoded)
        except ServiceError as error:
            await self._fail(flight, error)
            raise
        except Exception:  # a full disk, say: the video must not stay in preparation for ever
            await self._fail(flight, InternalError("internal_error", "Something went wrong on our side."))
            raise
        await self._complete(flight, decoded.indices, decoded.timestamps)
        return packed

    async def _complete(self, flight: Flight, indices: tuple[int, ...], timestamps: tuple[float, ...]) -> None:
        if flight.is_default:
            frames = tuple(
                SampledFrame(index=index, timestamp=timestamp)
                for index, timestamp in zip(indices, timestamps, strict=True)
            )
            ready = {"status": "ready", "frames": frames, "error": None}
            flight.record = flight.record.model_copy(update=ready)
            await self._videos.update(flight.tenant, flight.record)
        await self._tell(flight, "ready", 1.0)

    async def _decode(self, flight: Flight) -> DecodedVideo:
        pending: list[asyncio.Task[None]] = []

        def on_event(event: DecodeEvent) -> None:
            step = (
                self._probed(flight, event.facts)
                if isinstance(event, Probed)
                else self._tell(flight, "decode", event.done / event.total)
            )
            previous = pending[-1] if pending else None
            pending.append(asyncio.create_task(_after(previous, step)))

        try:
            async with self._media.local(flight.tenant, flight.record.sha256) as path:
                if path is None:
                    raise _gone()
                with tracing.span("decode", {"reeltalk.video.id": flight.record.id}):
                    decoded = await self._decoder.decode(path, flight.spec, flight.info.pixel_spec, on_event)
        except (VideoRejected, DecodeFailed) as error:
            raise from_code(error.code, str(error)) from None
        finally:
            if pending:
                await asyncio.wait(pending)
        self._metrics.video_decode.observe(decoded.seconds)
        self._metrics.video_preprocess.observe(decoded.preprocess_seconds)
        return decoded

    async def _encode(self, flight: Flight, decoded: DecodedVideo) -> PackedFeatures:
        await self._tell(flight, "encode", 0.0)
        with tracing.span("encode", {"reeltalk.video.id": flight.record.id}):
            encoded = await self._pool.encode(
                Encode(
                    job_id=new_id("req"),
                    key=flight.key,
                    frames=decoded.frames,
                    shape=decoded.shape,
                    frame_indices=decoded.indices,
                    timestamps=decoded.timestamps,
                )
            )
        self._metrics.video_encode.observe(encoded.seconds)
        _log.info(
            "video_encoded",
            num_frames=len(decoded.indices),
            num_batched_clips=encoded.num_batched_clips,
            decode_ms=round(decoded.seconds * 1000, 1),
            preprocess_ms=round(decoded.preprocess_seconds * 1000, 1),
            encode_ms=round(encoded.seconds * 1000, 1),
        )
        packed = PackedFeatures.checked(encoded.blob, key=flight.key, shape=flight.info.feature_shape)
        if not await self._videos.remember_features(flight.tenant, flight.record.id, flight.key):
            raise NotFound("video_not_found", "The video was erased meanwhile.", param="video_ids")
        await self._features.put(flight.key, packed)
        if flight.is_default:
            await self._media.put_frames(flight.tenant, flight.record.sha256, decoded.thumbnails)
        if not await self._videos.remember_features(flight.tenant, flight.record.id, flight.key):  # in between
            await self._features.erase([flight.key])
            await self._media.erase(flight.tenant, flight.record.sha256)
            raise NotFound("video_not_found", "The video was erased meanwhile.", param="video_ids")
        await self._tell(flight, "encode", 1.0)
        return packed

    # -- what others see of it

    async def _probed(self, flight: Flight, facts: VideoFacts) -> None:
        known = {
            "duration": facts.duration,
            "width": facts.width,
            "height": facts.height,
            "fps": facts.fps,
            "num_frames": facts.num_frames,
            "codec": facts.codec,
        }
        status = {"status": "processing"} if flight.is_default else {}
        flight.record = flight.record.model_copy(update=known | status)
        if flight.is_default:
            await self._videos.update(flight.tenant, flight.record)
        if not flight.probed.done():
            flight.probed.set_result(flight.record)

    async def _fail(self, flight: Flight, error: ServiceError) -> None:
        self._metrics.video_failures.labels(error.code).inc()
        _log.warning("video_failed", error=error.code)
        if flight.is_default:
            problem = Problem(code=error.code, message=error.message)
            flight.record = flight.record.model_copy(update={"status": "failed", "error": problem})
            await self._videos.update(flight.tenant, flight.record)
        await self._tell(flight, "failed", 1.0, error=error)

    async def _open_progress(self, flight: Flight) -> None:
        """Number on from an interrupted filling; begin anew after a finished one."""
        if not flight.is_default:
            return
        last = await self._videos.last_progress(flight.tenant, flight.record.id)
        if last is not None and last.name in {"ready", "failed"}:
            await self._videos.restart_progress(flight.tenant, flight.record.id)
            last = None
        flight.num_events = last.number if last is not None else 0

    async def _tell(self, flight: Flight, stage: str, fraction: float, *, error: ServiceError | None = None) -> None:
        for listener in flight.listeners:
            listener(Progress(video_id=flight.record.id, stage=stage, fraction=fraction))
        if not flight.is_default:
            return
        flight.num_events += 1
        data: dict[str, object] = {"video_id": flight.record.id, "fraction": round(fraction, 4)}
        if error is not None:
            data |= error.envelope()
        await self._videos.progress(flight.tenant, flight.record.id, LogEvent(flight.num_events, stage, data))


def _gone() -> Gone:
    return Gone("video_gone", "The video's file is gone; upload it again.", param="video_ids")


async def _after(previous: "asyncio.Task[None] | None", step: Coroutine[None, None, None]) -> None:
    if previous is not None:
        await asyncio.wait({previous})
    with contextlib.suppress(ServiceError):  # what is told next fails as well, or the record's next state says it too
        await step

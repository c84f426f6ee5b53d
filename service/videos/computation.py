"""Computes a video's features: decodes the file, encodes the frames, stores the result and updates the record."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Coroutine, Sequence
from dataclasses import dataclass, field

import structlog

from model.features import PackedFeatures
from model.video.inputs import InputSpec
from model.video.spec import SOUND_ERRORS, SoundErrorCode, SoundFacts
from service.decoding.child_process import DecodeEvent, VideoRejected
from service.decoding.decoder import DecodedVideo, DecodeFailed, Decoder
from service.decoding.protocol import Probed
from service.errors import Gone, InternalError, NotFound, ServiceError, from_code
from service.ids import new_id
from service.observability import tracing
from service.observability.metrics import Metrics
from service.store.records import AudioTrack, Problem, SampledFrame, VideoRecord
from service.store.stores import Stores
from service.videos.progress import ProgressReporter
from service.workers.pools import Pools
from service.workers.protocol import Encode, Encoded, ModelInfo

_log = structlog.get_logger(__name__)

WORKERS_LOST = frozenset({"worker_lost", "model_unavailable"})
"""Errors after which the workers of another model may compute the features."""


@dataclass(kw_only=True, slots=True, eq=False)
class PreparationJob:
    """The computation of one video's features, shared by all requests of this process that need them.

    Models with the same encoder share it too; `info` is that of the model that was asked first. If its workers are
    lost, those of another one that waits for the features compute them.
    """

    tenant: str
    record: VideoRecord
    """The video's record, as far as this job has changed it."""
    inputs: InputSpec
    info: ModelInfo
    key: str
    """The key of the features."""
    is_default: bool
    """Whether these are the default model's default frames, whose state the video's record and event log show."""
    progress: ProgressReporter
    probed: asyncio.Future[VideoRecord] = field(default_factory=lambda: asyncio.get_running_loop().create_future())
    """The record with the file's facts, once they are known."""
    askers: dict[str, ModelInfo] = field(default_factory=dict)
    """The models that wait for the features, by name."""
    tried: set[str] = field(default_factory=set)
    """The models whose workers were lost with this job."""
    task: asyncio.Task[PackedFeatures | None] | None = None
    """Its result is None for a model that sees no videos."""


class FeatureComputation:
    """Decodes and encodes videos and keeps the results."""

    def __init__(self, stores: Stores, *, pools: Pools, decoder: Decoder, metrics: Metrics) -> None:
        self._pools = pools
        self._decoder = decoder
        self._videos = stores.videos
        self._features = stores.features
        self._media = stores.media
        self._metrics = metrics

    async def compute(self, job: PreparationJob) -> PackedFeatures:
        """Compute and store a job's features; the record and the event log say how it ended.

        Raises:
            ServiceError: the file cannot be used or is gone, the video was erased, or a part of the service failed.
        """
        async with self._failing(job):
            decoded = await self._decode(job)
            packed = await self._encode(job, decoded)
            await self._store(job, packed, decoded)
        await self.complete(job, decoded.indices, decoded.timestamps)
        return packed

    async def probe(self, job: PreparationJob) -> None:
        """Read the facts of a job's file, and check that it can be decoded; the video is then ready without frames.

        Raises:
            ServiceError: the file cannot be used or is gone, or a part of the service failed.
        """
        async with self._failing(job):
            await self._decode(job)
        await self.complete(job, (), ())

    @contextlib.asynccontextmanager
    async def _failing(self, job: PreparationJob) -> AsyncIterator[None]:
        """Open the event log; if the block fails, let the record and the log say so."""
        await job.progress.open_log()
        try:
            yield
        except ServiceError as error:
            await self._fail(job, error)
            raise
        except Exception:  # a full disk, for example: the video must not stay in preparation for ever
            await self._fail(job, InternalError("internal_error", "Something went wrong on our side."))
            raise

    async def complete(self, job: PreparationJob, indices: tuple[int, ...], timestamps: tuple[float, ...]) -> None:
        """Mark a job's video as ready, with the frames that the model sees.

        Raises:
            Unavailable: the store cannot be reached.
        """
        if job.is_default:
            frames = sampled_frames(indices, timestamps)
            job.record = job.record.model_copy(update={"status": "ready", "frames": frames, "error": None})
            await self._videos.update(job.tenant, job.record)
        await job.progress.report("ready", 1.0)

    async def _fail(self, job: PreparationJob, error: ServiceError) -> None:
        self._metrics.video_failures.labels(error.code).inc()
        _log.warning("video_failed", error=error.code)
        if job.is_default:
            problem = Problem(code=error.code, message=error.message)
            job.record = job.record.model_copy(update={"status": "failed", "error": problem})
            await self._videos.update(job.tenant, job.record)
        await job.progress.report("failed", 1.0, error=error)

    # -- decoding

    async def _decode(self, job: PreparationJob) -> DecodedVideo:
        writes = _OrderedWrites()

        def on_event(event: DecodeEvent) -> None:
            if isinstance(event, Probed):
                writes.add(self._add_facts(job, event))
            else:
                writes.add(job.progress.report("decode", event.done / event.total))

        try:
            async with self._media.local(job.tenant, job.record.sha256) as path:
                if path is None:
                    raise video_gone()
                with tracing.span("decode", {"reeltalk.video.id": job.record.id}):
                    decoded = await self._decoder.decode(path, job.inputs, on_event)
        except (VideoRejected, DecodeFailed) as error:
            raise from_code(error.code, str(error)) from None
        finally:
            await writes.finish()
        if decoded.audio_error is not None:
            await self._note_unusable_sound(job, decoded.audio_error)
        self._metrics.video_decode.observe(decoded.seconds)
        self._metrics.video_preprocess.observe(decoded.preprocess_seconds)
        return decoded

    async def _note_unusable_sound(self, job: PreparationJob, error: SoundErrorCode) -> None:
        """Add to the record why the sound cannot be used, which only a model that hears finds out.

        The record of the default model's job is written when the job ends.
        """
        job.record = job.record.model_copy(update=_audio(None, error))
        if not job.is_default and (stored := await self._videos.get(job.tenant, job.record.id)) is not None:
            await self._videos.update(job.tenant, stored.model_copy(update=_audio(None, error)))

    async def _add_facts(self, job: PreparationJob, probed: Probed) -> None:
        facts = probed.facts
        update: dict[str, object] = {
            "duration": facts.duration,
            "width": facts.width,
            "height": facts.height,
            "fps": facts.fps,
            "num_frames": facts.num_frames,
            "codec": facts.codec,
            **_audio(probed.audio, probed.audio_error),
        }
        if job.is_default:
            update["status"] = "processing"
        job.record = job.record.model_copy(update=update)
        if job.is_default:
            await self._videos.update(job.tenant, job.record)
        if not job.probed.done():
            job.probed.set_result(job.record)

    # -- encoding

    async def _encode(self, job: PreparationJob, decoded: DecodedVideo) -> PackedFeatures:
        await job.progress.report("encode", 0.0)
        with tracing.span("encode", {"reeltalk.video.id": job.record.id}):
            model, encoded = await self._encoded(job, decoded)
        self._metrics.of_model(model).video_encode.observe(encoded.seconds)
        _log.info(
            "video_encoded",
            num_frames=len(decoded.indices),
            num_batched_clips=encoded.num_batched_clips,
            decode_ms=round(decoded.seconds * 1000, 1),
            preprocess_ms=round(decoded.preprocess_seconds * 1000, 1),
            encode_ms=round(encoded.seconds * 1000, 1),
        )
        return PackedFeatures.checked(encoded.blob, key=job.key, parts=job.info.parts)

    async def _encoded(self, job: PreparationJob, decoded: DecodedVideo) -> tuple[str, Encoded]:
        """Encode with the workers of the job's model or, if they are lost, of one that waits; returns its name too."""
        model = job.info.name
        while True:
            try:
                return model, await self._pools.encode(
                    Encode(
                        job_id=new_id("req"),
                        key=job.key,
                        frames=decoded.frames,
                        shape=decoded.shape,
                        frame_indices=decoded.indices,
                        timestamps=decoded.timestamps,
                        sound=decoded.sound,
                    ),
                    model=model,
                )
            except ServiceError as error:
                job.tried.add(model)
                others = [name for name in job.askers if name not in job.tried]
                if error.code not in WORKERS_LOST or not others:
                    raise
                _log.warning("video_encoded_elsewhere", error=error.code, lost_model=model, model=others[0])
                model = others[0]

    async def _store(self, job: PreparationJob, packed: PackedFeatures, decoded: DecodedVideo) -> None:
        """Store features and thumbnails; stores nothing of a video that is erased before or meanwhile."""
        if not await self._videos.remember_features(job.tenant, job.record.id, job.key):
            raise _erased()
        await self._features.put(job.key, packed, model=job.info.name)
        if job.is_default:
            await self._media.put_frames(job.tenant, job.record.sha256, decoded.thumbnails)
        if not await self._videos.remember_features(job.tenant, job.record.id, job.key):
            await self._features.erase([job.key])
            await self._media.erase(job.tenant, job.record.sha256)
            raise _erased()
        await job.progress.report("encode", 1.0)


class _OrderedWrites:
    """Runs writes in the background, one after the other; a write that fails with a `ServiceError` is skipped.

    A write that matters is followed by another one that fails in the same way, or that writes the same state again.
    """

    def __init__(self) -> None:
        self._last: asyncio.Task[None] | None = None

    def add(self, write: Coroutine[None, None, None]) -> None:
        """Run `write` after those that were added before."""
        self._last = asyncio.create_task(self._run(self._last, write))

    async def finish(self) -> None:
        """Wait until all writes are done."""
        if self._last is not None:
            await asyncio.wait({self._last})

    @staticmethod
    async def _run(previous: asyncio.Task[None] | None, write: Coroutine[None, None, None]) -> None:
        if previous is not None:
            await asyncio.wait({previous})
        with contextlib.suppress(ServiceError):
            await write


def _audio(facts: SoundFacts | None, error: SoundErrorCode | None) -> dict[str, object]:
    """The fields of a record that tell of a video's sound."""
    return {
        "audio": None if facts is None else AudioTrack(codec=facts.codec, rate=facts.rate, channels=facts.channels),
        "audio_error": None if error is None else Problem(code=error, message=SOUND_ERRORS[error]),
    }


def sampled_frames(indices: Sequence[int], timestamps: Sequence[float]) -> tuple[SampledFrame, ...]:
    """Return the frames with these indices and seconds."""
    return tuple(
        SampledFrame(index=index, timestamp=timestamp) for index, timestamp in zip(indices, timestamps, strict=True)
    )


def video_gone() -> Gone:
    """The error for a video whose file and features are both gone."""
    return Gone("video_gone", "The video's file is gone; upload it again.", param="video_ids")


def _erased() -> NotFound:
    return NotFound("video_not_found", "The video was erased meanwhile.", param="video_ids")

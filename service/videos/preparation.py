"""The features of videos: read from the cache, or computed once for all requests at all replicas that need them.

Requests in one process share a job. Across replicas the holder of a lease computes, and the others wait for its result.
"""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import replace

import structlog
from structlog.contextvars import bind_contextvars

from model.features import PackedFeatures, fingerprint
from model.video.inputs import InputSpec
from model.video.pixels import PREPROCESSING_VERSION
from model.video.spec import InvalidFrameSpec
from service.decoding.decoder import Decoder
from service.errors import Fault, InvalidRequest, ServiceError, Unavailable, fault_of, from_code
from service.ids import new_id
from service.observability.metrics import Metrics
from service.store import keys
from service.store.records import FrameRequest, VideoRecord
from service.store.stores import Stores
from service.videos.computation import FeatureComputation, PreparationJob, video_gone
from service.videos.progress import PreparationProgress, ProgressReporter
from service.workers.pool import Pool
from service.workers.protocol import ModelInfo

_log = structlog.get_logger(__name__)

MODEL_TIMEOUT = 30.0
"""Seconds to wait for the model to be loaded."""
_POLL_INTERVAL = 0.2  # seconds between two attempts to take the lease or to read another replica's result

DEFAULT_FRAMES = FrameRequest()
"""The model's own frame spec."""


def is_service_failure(code: str) -> bool:
    """Whether a video failed because of the service, not because of its file, so that another attempt may succeed."""
    return fault_of(code) is not Fault.CLIENT


def check_usable(video: VideoRecord) -> None:
    """Refuse a video whose file cannot be used.

    Raises:
        ServiceError: the error with which its preparation failed.
    """
    if video.error is not None and not is_service_failure(video.error.code):
        raise from_code(video.error.code, video.error.message)


class Preparation:
    """Prepares videos: computes the features of each choice of frames once."""

    def __init__(self, stores: Stores, *, pool: Pool, decoder: Decoder, metrics: Metrics) -> None:
        self._pool = pool
        self._videos = stores.videos
        self._features = stores.features
        self._media = stores.media
        self._leases = stores.leases
        self._computation = FeatureComputation(stores, pool=pool, decoder=decoder, metrics=metrics)
        self._replica = new_id("rep")
        self._jobs: dict[str, PreparationJob] = {}

    @property
    def num_jobs(self) -> int:
        """The number of jobs that run or wait in this process."""
        return len(self._jobs)

    @property
    def ready(self) -> bool:
        """Whether a worker can encode a video now."""
        return self._pool.ready

    async def close(self) -> None:
        """Cancel all jobs; another replica, or the next start of this one, runs them again."""
        tasks = [job.task for job in self._jobs.values() if job.task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def model(self) -> ModelInfo:
        """Return the loaded model; waits for it for `MODEL_TIMEOUT` seconds at most.

        Raises:
            Unavailable: the model is not loaded yet.
        """
        try:
            return await self._pool.info(timeout=MODEL_TIMEOUT)
        except TimeoutError:
            raise Unavailable("model_unavailable", "The model is not loaded yet; try again in a moment.") from None

    async def ensure(
        self,
        tenant: str,
        video: VideoRecord,
        frames: FrameRequest,
        *,
        on_progress: Callable[[PreparationProgress], None] | None = None,
    ) -> tuple[str, PackedFeatures]:
        """Return the key and the features of a video's frames, from the cache or computed now.

        Raises:
            ServiceError: the file cannot be used or is gone, or a part of the service failed.
        """
        check_usable(video)
        job = self._job(tenant, video, frames, await self.model())
        if job.task is None:
            cached = await self._features.get(job.key, parts=job.info.parts)
            if cached is not None:
                if on_progress is not None:
                    on_progress(PreparationProgress(video_id=video.id, stage="ready", fraction=1.0))
                return job.key, cached
        job, task = self._start(job)
        if on_progress is not None:
            job.progress.add_listener(on_progress)
        return job.key, await asyncio.shield(task)

    async def check_available(self, tenant: str, videos: Sequence[VideoRecord], frames: FrameRequest) -> None:
        """Refuse videos of which one has neither its file nor its features; takes one round trip to the store at most.

        Raises:
            Gone: a video must be uploaded again.
            Unavailable: the model is not loaded yet, or the bucket cannot be reached.
        """
        exist = await asyncio.gather(*(self._media.exists(tenant, video.sha256) for video in videos))
        without_file = [video for video, exists in zip(videos, exist, strict=True) if not exists]
        if not without_file:
            return
        info = await self.model()
        jobs = [self._job(tenant, video, frames, info) for video in without_file]
        needed = {job.key for job in jobs if job.task is None}
        if needed and not needed <= set(await self._features.existing(sorted(needed))):
            raise video_gone()

    async def erase_features(self, tenant: str, video_id: str) -> None:
        """Erase all cached features of a video.

        Raises:
            Unavailable: the store cannot be reached, and the features may still be there.
        """
        await self._features.erase(await self._videos.features_keys(tenant, video_id))

    async def start(self, tenant: str, video: VideoRecord) -> PreparationJob:
        """Start the preparation of a video's default frames, unless it runs already; returns its job at once.

        Raises:
            Unavailable: the model is not loaded yet.
        """
        job, _ = self._start(self._job(tenant, video, DEFAULT_FRAMES, await self.model()))
        return job

    # -- one job

    def _job(self, tenant: str, video: VideoRecord, frames: FrameRequest, info: ModelInfo) -> PreparationJob:
        """Return the running job for these features, or a new one that is not started."""
        inputs = _inputs(info, frames)
        key = _features_key(tenant, video, inputs, info)
        running = self._jobs.get(key)
        if running is not None:
            return running
        is_default = inputs == info.inputs
        return PreparationJob(
            tenant=tenant,
            record=video,
            inputs=inputs,
            info=info,
            key=key,
            is_default=is_default,
            progress=ProgressReporter(self._videos, tenant, video.id, is_logged=is_default),
        )

    def _start(self, job: PreparationJob) -> tuple[PreparationJob, asyncio.Task[PackedFeatures]]:
        """Start a job, unless one for the same features runs; returns the one that runs, and its task."""
        job = self._jobs.setdefault(job.key, job)
        if job.task is None:
            job.task = asyncio.create_task(self._run(job), name=f"prepare {job.record.id}")
            job.task.add_done_callback(lambda task: self._end(job, task))
        return job, job.task

    def _end(self, job: PreparationJob, task: asyncio.Task[PackedFeatures]) -> None:
        del self._jobs[job.key]
        error = None if task.cancelled() else task.exception()
        if error is not None and not isinstance(error, ServiceError):
            _log.error("video_failed_unexpectedly", video_id=job.record.id, tenant=job.tenant, exc_info=error)

    async def _run(self, job: PreparationJob) -> PackedFeatures:
        """Compute the features if this replica gets the lease, or wait for the replica that has it."""
        bind_contextvars(tenant=job.tenant, video_id=job.record.id)  # the task outlives the request that started it
        while True:
            async with self._leases.hold(keys.fill_lease(job.key), self._replica) as acquired:
                if acquired:
                    return await self._stored(job) or await self._computation.compute(job)
            await asyncio.sleep(_POLL_INTERVAL)
            if await self._features.existing([job.key]) and (stored := await self._stored(job)):
                return stored

    async def _stored(self, job: PreparationJob) -> PackedFeatures | None:
        """Return features that another replica has stored; completes the record if that replica died before it did."""
        stored = await self._features.get(job.key, parts=job.info.parts)
        if stored is None:
            return None
        if job.is_default and job.record.num_frames is None:  # the record is from the time before the wait
            job.record = await self._videos.get(job.tenant, job.record.id) or job.record
            if job.record.num_frames is None:
                return None
        if job.record.status != "ready":
            await self._computation.complete(job, stored.frame_indices, stored.timestamps)
        return stored


def _inputs(info: ModelInfo, frames: FrameRequest) -> InputSpec:
    """The model's inputs with the requested frames.

    Raises:
        InvalidRequest: the model cannot take so many frames.
    """
    assert info.inputs is not None, "the model sees videos"
    own = info.inputs.frames
    try:
        spec = replace(own, count=frames.count or own.count, start=frames.start, end=frames.end)
        return replace(info.inputs, frames=spec, sound=info.inputs.sound if frames.audio else None)
    except InvalidFrameSpec as error:
        raise InvalidRequest("invalid_value", str(error), param=f"frames.{error.param}") from None


def _features_key(tenant: str, video: VideoRecord, inputs: InputSpec, info: ModelInfo) -> str:
    of_model = fingerprint(
        family=info.family,
        encoder_digest=info.encoder_digest,
        inputs=inputs,
        preprocessing_version=PREPROCESSING_VERSION,
        dtype=info.dtype,
    )
    return keys.features(tenant, of_model, video.sha256)

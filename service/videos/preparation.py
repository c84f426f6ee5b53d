"""The features of videos: read from the cache, or computed once for all requests at all replicas that need them.

Requests in one process share a job. Across replicas the holder of a lease computes, and the others wait for its result.
"""

import asyncio
from collections.abc import Callable, Sequence

import structlog
from structlog.contextvars import bind_contextvars

from model.features import PackedFeatures
from model.video.inputs import InputSpec
from model.video.pixels import PixelSpec
from model.video.spec import FrameSpec
from service.decoding.decoder import Decoder
from service.errors import Fault, ServiceError, fault_of, from_code
from service.ids import new_id
from service.observability.metrics import Metrics
from service.store import keys
from service.store.records import FrameRequest, VideoRecord
from service.store.stores import Stores
from service.videos.computation import WORKERS_LOST, FeatureComputation, PreparationJob, sampled_frames, video_gone
from service.videos.feature_keys import DEFAULT_FRAMES, features_key, requested_inputs
from service.videos.progress import PreparationProgress, ProgressReporter
from service.workers.pools import Pools
from service.workers.protocol import ModelInfo

_log = structlog.get_logger(__name__)

_POLL_INTERVAL = 0.2  # seconds between two attempts to take the lease or to read another replica's result

_PROBE = InputSpec(frames=FrameSpec(count=1), pixels=PixelSpec(size=32))
"""What is decoded of a video whose facts are wanted and no features: enough to know that it can be decoded."""


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

    def __init__(self, stores: Stores, *, pools: Pools, decoder: Decoder, metrics: Metrics) -> None:
        self._pools = pools
        self._videos = stores.videos
        self._features = stores.features
        self._media = stores.media
        self._leases = stores.leases
        self._computation = FeatureComputation(stores, pools=pools, decoder=decoder, metrics=metrics)
        self._replica = new_id("rep")
        self._jobs: dict[str, PreparationJob] = {}

    @property
    def num_jobs(self) -> int:
        """The number of jobs that run or wait in this process."""
        return len(self._jobs)

    @property
    def ready(self) -> bool:
        """Whether a worker can encode a video now."""
        return self._pools.ready

    async def close(self) -> None:
        """Cancel all jobs; another replica, or the next start of this one, runs them again."""
        tasks = [job.task for job in self._jobs.values() if job.task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def info(self, model: str) -> ModelInfo:
        """Return the properties of a model, by name; wait until it is loaded.

        Raises:
            NotFound: no model has this name.
            Unavailable: the model is not loaded yet, or cannot be loaded.
        """
        return await self._pools.info(model)

    async def ensure(
        self,
        tenant: str,
        video: VideoRecord,
        frames: FrameRequest,
        *,
        model: str,
        on_progress: Callable[[PreparationProgress], None] | None = None,
    ) -> tuple[str, PackedFeatures]:
        """Return the key and the features that a model needs of a video, from the cache or computed now.

        Raises:
            ServiceError: the file cannot be used or is gone, or a part of the service failed.
        """
        check_usable(video)
        info = await self._pools.info(model)
        job = self._job(tenant, video, frames, info)
        if job.task is None:
            cached = await self._features.get(job.key, parts=job.info.parts, model=model)
            if cached is not None:
                if on_progress is not None:
                    on_progress(PreparationProgress(video_id=video.id, stage="ready", fraction=1.0))
                return job.key, cached
        job, task = self._start(job, info)
        if on_progress is not None:
            job.progress.add_listener(on_progress)
        try:
            packed = await asyncio.shield(task)
        except ServiceError as error:
            if error.code not in WORKERS_LOST or model in job.tried:
                raise
            # the workers of another model were lost before this question came to wait
            job, task = self._start(self._job(tenant, video, frames, info), info)
            if on_progress is not None:
                job.progress.add_listener(on_progress)
            packed = await asyncio.shield(task)
        assert packed is not None, "the model sees videos"
        return job.key, packed

    async def check_available(
        self, tenant: str, videos: Sequence[VideoRecord], frames: FrameRequest, *, model: str
    ) -> None:
        """Refuse videos of which one has neither its file nor its features; takes one round trip to the store at most.

        Raises:
            Gone: a video must be uploaded again.
            Unavailable: the model is not loaded yet, or the bucket cannot be reached.
        """
        exist = await asyncio.gather(*(self._media.exists(tenant, video.sha256) for video in videos))
        without_file = [video for video, exists in zip(videos, exist, strict=True) if not exists]
        if not without_file:
            return
        info = await self._pools.info(model)
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
        """Start the preparation of a video for the default model, unless it runs already; returns its job at once.

        The features of the models that are marked as eager are computed afterwards.

        A model that sees no videos has no frames: the file is only probed, and the video is then ready without frames.

        Raises:
            Unavailable: the default model is not loaded yet.
        """
        default = await self._pools.info(None)
        info = self._shown_model() or default
        job, _ = self._start(self._job(tenant, video, DEFAULT_FRAMES, info), info)
        return job

    async def start_missing(self, tenant: str, video: VideoRecord) -> VideoRecord:
        """Start what this replica's models lack of a video that is ready, maybe for another replica's default model.

        Returns:
            Its record; without frames if those of the default model are missing.
        """
        info = self._shown_model()
        if info is not None and info.inputs is not None:
            job = self._job(tenant, video, DEFAULT_FRAMES, info)
            if job.task is not None or not await self._features.existing([job.key]):
                self._start(job, info)  # the eager models follow
                return video.model_copy(update={"status": "processing", "frames": (), "error": None})
        self.start_eager(tenant, video)
        return video

    def start_eager(self, tenant: str, video: VideoRecord) -> None:
        """Start the preparation of a video for all models that are marked as eager and loaded."""
        for model in self._pools:
            if model.spec.is_eager and model.state == "ready" and model.info is not None and model.info.inputs:
                self._start(self._job(tenant, video, DEFAULT_FRAMES, model.info), model.info)

    async def view(self, tenant: str, video: VideoRecord, *, model: str) -> VideoRecord:
        """Return a video's record as it is for one model: the status and the frames of that model's features.

        The stored record may be of another model, also if this is the default one: replicas can have other defaults.

        Raises:
            NotFound: no model has this name.
            Unavailable: the model is not loaded yet, or cannot be loaded.
        """
        info = await self._pools.info(model)
        if info.inputs is None:
            return video.model_copy(update={"status": "ready", "frames": (), "error": None})
        job = self._job(tenant, video, DEFAULT_FRAMES, info)
        if video.error is not None and not is_service_failure(video.error.code):
            return video
        stored = await self._features.get(job.key, parts=info.parts, model=model)
        if stored is None or (job.task is not None and video.status != "ready"):
            if job.task is None and job.is_default and video.status == "failed":
                return video.model_copy(update={"frames": ()})
            is_running = job.task is not None or await self._leases.holder(keys.fill_lease(job.key)) is not None
            status = "processing" if is_running else "uploaded"
            return video.model_copy(update={"status": status, "frames": (), "error": None})
        frames = sampled_frames(stored.frame_indices, stored.timestamps)
        return video.model_copy(update={"status": "ready", "frames": frames, "error": None})

    # -- one job

    def _job(self, tenant: str, video: VideoRecord, frames: FrameRequest, info: ModelInfo) -> PreparationJob:
        """Return the running job for these features, or a new one that is not started."""
        inputs = _PROBE if info.inputs is None else requested_inputs(info, frames)
        key = keys.probe(tenant, video.sha256) if info.inputs is None else features_key(tenant, video, inputs, info)
        running = self._jobs.get(key)
        if running is not None:
            return running
        is_default = key == self._shown_key(tenant, video)
        return PreparationJob(
            tenant=tenant,
            record=video,
            inputs=inputs,
            info=info,
            key=key,
            is_default=is_default,
            progress=ProgressReporter(self._videos, tenant, video.id, is_logged=is_default),
        )

    def _start(
        self, job: PreparationJob, asker: ModelInfo
    ) -> tuple[PreparationJob, asyncio.Task[PackedFeatures | None]]:
        """Start a job that a model asks for, unless one for the same features runs; returns that one, and its task."""
        job = self._jobs.setdefault(job.key, job)
        job.askers.setdefault(asker.name, asker)
        if job.task is None:
            work = self._probe(job) if job.info.inputs is None else self._run(job)
            job.task = asyncio.create_task(work, name=f"prepare {job.record.id}")
            job.task.add_done_callback(lambda task: self._end(job, task))
        return job, job.task

    def _shown_model(self) -> ModelInfo | None:
        """The model whose features the records of videos show: the default, or the first other one that sees videos.

        If no model sees videos it is the default one. None while the default model is not loaded.
        """
        default = self._pools.get(None).info
        if default is None or default.inputs is not None:
            return default
        others = (model.info for model in self._pools)
        return next((info for info in others if info is not None and info.inputs is not None), default)

    def _shown_key(self, tenant: str, video: VideoRecord) -> str | None:
        """The key of the features that the video's record shows; None while the default model is not loaded."""
        info = self._shown_model()
        if info is None:
            return None
        if info.inputs is None:
            return keys.probe(tenant, video.sha256)
        return features_key(tenant, video, info.inputs, info)

    def _end(self, job: PreparationJob, task: asyncio.Task[PackedFeatures | None]) -> None:
        del self._jobs[job.key]
        error = None if task.cancelled() else task.exception()
        if job.is_default and not task.cancelled() and error is None:
            self.start_eager(job.tenant, job.record)
        if error is not None and not isinstance(error, ServiceError):
            _log.error("video_failed_unexpectedly", video_id=job.record.id, tenant=job.tenant, exc_info=error)

    async def _run(self, job: PreparationJob) -> PackedFeatures | None:
        """Compute the features if this replica gets the lease, or wait for the replica that has it."""
        bind_contextvars(tenant=job.tenant, video_id=job.record.id)  # the task outlives the request that started it
        while True:
            async with self._leases.hold(keys.fill_lease(job.key), self._replica) as acquired:
                if acquired:
                    return await self._stored(job) or await self._computation.compute(job)
            await asyncio.sleep(_POLL_INTERVAL)
            if await self._features.existing([job.key]) and (stored := await self._stored(job)):
                return stored

    async def _probe(self, job: PreparationJob) -> None:
        """Probe the file if this replica gets the lease, unless another replica has done so."""
        bind_contextvars(tenant=job.tenant, video_id=job.record.id)
        while True:
            async with self._leases.hold(keys.fill_lease(job.key), self._replica) as acquired:
                if acquired:
                    job.record = await self._videos.get(job.tenant, job.record.id) or job.record
                    if job.record.status != "ready":
                        await self._computation.probe(job)
                    return
            await asyncio.sleep(_POLL_INTERVAL)

    async def _stored(self, job: PreparationJob) -> PackedFeatures | None:
        """Return features that another replica has stored; completes the record if that replica died before it did."""
        stored = await self._features.get(job.key, parts=job.info.parts, model=job.info.name)
        if stored is None:
            return None
        if job.is_default and job.record.num_frames is None:  # the record is from the time before the wait
            job.record = await self._videos.get(job.tenant, job.record.id) or job.record
            if job.record.num_frames is None:
                return None
        if job.record.status != "ready":
            await self._computation.complete(job, stored.frame_indices, stored.timestamps)
        return stored

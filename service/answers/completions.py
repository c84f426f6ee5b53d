"""Flow 3: a chat completion. The whole conversation comes with the request; nothing is kept of it but its videos."""

import asyncio
import contextlib
import math
import time
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import replace

import structlog
from structlog.contextvars import bind_contextvars

from model.engine.sampling_params import MAX_SEED, SamplingParams
from model.features import PackedFeatures
from model.text.conversation import Clip, Conversation, Turn
from service.access.callers import Caller
from service.access.limits import ConcurrencyLimit
from service.answers.admission import Place
from service.answers.choice import Choice, Event, Gained, Seen, Spent, Started
from service.answers.completion_request import CompletionRequest, InlineVideo, RemoteVideo, UploadedVideo, VideoSource
from service.answers.questions import check_length, longest
from service.answers.runner import Answering, deadline_exceeded
from service.answers.sampling import sampling_params
from service.drain import Drain
from service.errors import InvalidRequest, NotFound, ServiceError
from service.ids import new_id
from service.observability import tracing
from service.observability.metrics import Metrics
from service.settings import Settings
from service.store.records import SampledFrame, VideoFrames, VideoRecord
from service.videos.ingest import Ingest
from service.videos.preparation import DEFAULT_FRAMES, Encoding, check_usable
from service.videos.receiving import UploadBody
from service.workers.pool import Pool
from service.workers.protocol import Delta, Generate, ModelInfo, Refused

_log = structlog.get_logger(__name__)

_IDLE = 1.0  # seconds between two signs of life
_MAX_CHARACTERS = 400_000  # of all texts of a conversation: a worker counts their tokens while others wait for it
_INLINE_CHUNK = 1 << 20


class Completions:
    """Chat completions of one replica."""

    def __init__(
        self,
        *,
        settings: Settings,
        answering: Answering,
        pool: Pool,
        encoding: Encoding,
        ingest: Ingest,
        drain: Drain,
        concurrency_limit: ConcurrencyLimit,
        metrics: Metrics,
    ) -> None:
        self._settings = settings
        self._answering = answering
        self._pool = pool
        self._encoding = encoding
        self._ingest = ingest
        self._drain = drain
        self._concurrency_limit = concurrency_limit
        self._metrics = metrics

    async def run(self, caller: Caller, request: CompletionRequest) -> AsyncGenerator[Event | None, None]:
        """Everything that happens from `Started` to `Spent`; None now and then while nothing does.

        Whoever closes the generator stops the work at the next step.

        Raises:
            ServiceError: before the first event, a refusal; later, a failure.
        """
        self._drain.check()
        tenant = caller.tenant
        timeout = request.question.timeout
        deadline = time.time() + min(self._settings.answer_timeout, math.inf if timeout is None else timeout)
        completion_id = new_id("chatcmpl")
        bind_contextvars(completion_id=completion_id)
        async with contextlib.AsyncExitStack() as places:
            waiting = [places.enter_context(self._answering.place(1)) for _ in range(request.num_choices)]
            answer_ids = [f"{completion_id}/{index}" for index in range(request.num_choices)]
            await places.enter_async_context(self._concurrency_limit.count_answers_until_exit(caller, answer_ids))
            info, params, videos, conversation = await self._accept(caller, request, waiting[0], deadline=deadline)
            yield Started(id=completion_id, created_at=time.time(), model=info)
            preparing = asyncio.create_task(self._features(tenant, videos))
            try:
                while not (await asyncio.wait({preparing}, timeout=_wait(deadline)))[0]:
                    yield None
            finally:
                preparing.cancel()
            packed = preparing.result()
            yield Seen(videos=tuple(_seen(video, each) for video, (_, each) in zip(videos, packed, strict=True)))
            command = Generate(
                job_id=completion_id,
                conversation=replace(conversation, clips=await self._clips(tenant, videos, packed)),
                features=tuple(features.blob for _, features in packed),
                feature_keys=tuple(key for key, _ in packed),
                cache_salt=tenant,
                params=params,
                priority=min(0, caller.limits.max_priority),
            )
            choices = {f"{completion_id}/{index}": Choice(index) for index in range(request.num_choices)}
            async with contextlib.aclosing(self._generated(command, choices, deadline=deadline)) as gains:
                async for gained in gains:
                    while gained is not None and waiting:  # it waits no longer
                        place = waiting.pop()
                        place.num_sequences = place.num_tokens = 0
                    yield gained
            first = next(iter(choices.values()))
            yield Spent(
                num_prompt_tokens=first.num_prompt_tokens,
                num_completion_tokens=sum(choice.num_tokens for choice in choices.values()),
                num_cached_tokens=first.num_cached_tokens,
                num_video_tokens=len(videos) * info.num_video_tokens,
            )

    # -- before the first event

    async def _accept(
        self, caller: Caller, request: CompletionRequest, place: Place, *, deadline: float
    ) -> tuple[ModelInfo, SamplingParams, list[VideoRecord], Conversation]:
        info = await self._encoding.model()
        if request.model != info.name:
            raise NotFound("model_not_found", f"This server serves the model {info.name!r}.", param="model")
        params = sampling_params(request.question.sampling, default=info.default_sampling)
        turns = (*request.history, Turn(role="user", text=request.question.content))
        if len(request.system) + sum(len(turn.text) for turn in turns) > _MAX_CHARACTERS:
            raise InvalidRequest(
                "context_length_exceeded",
                f"All messages together may have at most {_MAX_CHARACTERS} characters.",
                param="messages",
            )
        if len(request.videos) > self._settings.max_videos_per_session:
            raise InvalidRequest(
                "too_many_videos",
                f"A conversation is about at most {self._settings.max_videos_per_session} videos.",
                param="messages",
            )
        found = {record.id: record for record in [await self._video(caller, source) for source in request.videos]}
        videos = list(found.values())
        conversation = longest(videos, turns, system=request.system, num_frames=None, info=info)
        with _about("messages"):
            num_tokens = await check_length(self._pool, conversation, deadline=deadline)
        self._answering.widen(place, num_tokens=num_tokens)
        return info, params, videos, conversation

    async def _video(self, caller: Caller, source: VideoSource) -> VideoRecord:
        with _about(source.param):
            match source:
                case UploadedVideo(video_id=video_id):
                    record = await self._ingest.get(caller.tenant, video_id)
                case InlineVideo(data=data, content_type=content_type, filename=filename):
                    body = UploadBody(
                        chunks=_chunks(data), content_type=content_type, content_length=len(data), filename=filename
                    )
                    record, _ = await self._ingest.receive(caller, body)
                case RemoteVideo(url=url):
                    record, _ = await self._ingest.fetch(caller, url)
            check_usable(record)
        return record

    # -- the work

    async def _features(self, tenant: str, videos: Sequence[VideoRecord]) -> list[tuple[str, PackedFeatures]]:
        return [await self._encoding.ensure(tenant, video, DEFAULT_FRAMES) for video in videos]

    async def _clips(
        self, tenant: str, videos: Sequence[VideoRecord], packed: Sequence[tuple[str, PackedFeatures]]
    ) -> tuple[Clip, ...]:
        """What the prompt says of each video. The rate of one that was not yet probed is read again."""
        known = [video if video.fps is not None else await self._ingest.get(tenant, video.id) for video in videos]
        return tuple(
            Clip(frame_indices=features.frame_indices, fps=video.fps or 1.0)
            for video, (_, features) in zip(known, packed, strict=True)
        )

    async def _generated(
        self, command: Generate, choices: Mapping[str, Choice], *, deadline: float
    ) -> AsyncGenerator[Gained | None, None]:
        """What the choices gain, each a job of its own, until all have ended."""
        outputs: asyncio.Queue[Delta | Refused] = asyncio.Queue()
        running = set(choices)
        try:
            for job_id, choice in choices.items():
                seed = (command.params.seed + choice.index) & MAX_SEED  # or all choices would say the same
                params = replace(command.params, seed=seed)
                choice.trace = tracing.begin("chat", {"gen_ai.operation.name": "chat", "gen_ai.response.id": job_id})
                with choice.trace.current():
                    self._pool.generate(replace(command, job_id=job_id, params=params), outputs)
            while running:
                output = await _next(outputs, timeout=_wait(deadline))
                if output is None:
                    yield None
                    continue
                if isinstance(output, Refused) or output.finish_reason is not None:
                    running.discard(output.job_id)
                yield choices[output.job_id].gain(output, self._metrics)
        finally:
            for job_id in running:
                self._pool.abort(job_id)
            for choice in choices.values():
                choice.observe(self._metrics)


async def _next(outputs: "asyncio.Queue[Delta | Refused]", *, timeout: float) -> Delta | Refused | None:
    try:
        async with asyncio.timeout(timeout):
            return await outputs.get()
    except TimeoutError:
        return None


def _wait(deadline: float) -> float:
    """Seconds to wait for what comes next.

    Raises:
        Overloaded: the time is up.
    """
    time_left = deadline - time.time()
    if time_left <= 0:
        raise deadline_exceeded()
    return min(_IDLE, time_left)


def _seen(video: VideoRecord, features: PackedFeatures) -> VideoFrames:
    return VideoFrames(
        video_id=video.id,
        frames=tuple(
            SampledFrame(index=index, timestamp=timestamp)
            for index, timestamp in zip(features.frame_indices, features.timestamps, strict=True)
        ),
    )


async def _chunks(data: bytes) -> AsyncIterator[bytes]:
    for start in range(0, len(data), _INLINE_CHUNK):
        yield data[start : start + _INLINE_CHUNK]


@contextlib.contextmanager
def _about(param: str) -> Iterator[None]:
    """Let a refusal name the field of this request that it is about."""
    try:
        yield
    except ServiceError as error:
        error.param = param if error.status < 500 else error.param
        raise

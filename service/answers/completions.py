"""Chat completions: the whole conversation comes with the request, and only its videos are kept."""

import asyncio
import contextlib
import math
import time
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Sequence
from dataclasses import dataclass, replace

from structlog.contextvars import bind_contextvars

from model.engine.sampling_params import MAX_SEED
from model.text.conversation import Turn
from service.access.callers import Caller
from service.access.limits import ConcurrencyLimit
from service.answers.acceptance import Acceptance, Accepted, check_modality, longest_prompt
from service.answers.admission import Admission, Place
from service.answers.completion_request import CompletionRequest, InlineVideo, RemoteVideo, UploadedVideo, VideoSource
from service.answers.generation import Generation, deadline_exceeded, failure_of
from service.answers.inputs import VideoInputs, prepare_videos
from service.answers.moments import VideoTimeAxis
from service.errors import Fault, InternalError, InvalidRequest, ServiceError, fault_of
from service.ids import new_id
from service.observability.metrics import Metrics
from service.observability.model_metrics import ModelMetrics
from service.settings import Settings
from service.store.records import Moment, VideoFrames, VideoRecord
from service.store.videos import VideoStore
from service.videos.feature_keys import DEFAULT_FRAMES
from service.videos.ingest import Ingest
from service.videos.preparation import Preparation, check_usable
from service.videos.receiving import UploadBody
from service.workers.pools import Pools
from service.workers.protocol import Delta, Generate, ModelInfo, Refused, TokenLogprobs

_MAX_CHARACTERS = 400_000  # of all texts of a conversation: a worker counts their tokens while other jobs wait for it
_INLINE_CHUNK = 1 << 20


@dataclass(frozen=True, kw_only=True, slots=True)
class CompletionStarted:
    """The request is accepted; no token is generated yet."""

    id: str
    created_at: float
    model: ModelInfo


@dataclass(frozen=True, kw_only=True, slots=True)
class FramesSampled:
    """The frames of each video that the choices are based on."""

    videos: tuple[VideoFrames, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class ChoiceOutput:
    """What one choice gained in a step. The last one has a `finish_reason`."""

    index: int
    text: str
    logprobs: tuple[TokenLogprobs, ...]
    finish_reason: str | None
    moments: tuple[Moment, ...] | None = None
    """With the last output: the moments that the choice names; None if the model has no time axis."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CompletionEnded:
    """Tokens of the whole completion: the prompt counts once, the choices together."""

    num_prompt_tokens: int
    num_completion_tokens: int
    num_cached_tokens: int
    num_video_tokens: int


CompletionEvent = CompletionStarted | FramesSampled | ChoiceOutput | CompletionEnded


class Completions:
    """Chat completions of one replica."""

    def __init__(
        self,
        *,
        settings: Settings,
        admission: Admission,
        acceptance: Acceptance,
        concurrency_limit: ConcurrencyLimit,
        pools: Pools,
        preparation: Preparation,
        ingest: Ingest,
        videos: VideoStore,
        metrics: Metrics,
    ) -> None:
        self._settings = settings
        self._admission = admission
        self._acceptance = acceptance
        self._concurrency_limit = concurrency_limit
        self._pools = pools
        self._preparation = preparation
        self._ingest = ingest
        self._videos = videos
        self._metrics = metrics

    async def run(self, caller: Caller, request: CompletionRequest) -> AsyncGenerator[CompletionEvent, None]:
        """Yield what happens, from `CompletionStarted` to `CompletionEnded`.

        Closing the generator stops the work at the next step.

        Raises:
            ServiceError: before the first event, a refusal; later, a failure.
        """
        self._admission.check_open()
        timeout = request.question.timeout
        deadline = time.time() + min(self._settings.answer_timeout, math.inf if timeout is None else timeout)
        completion_id = new_id("chatcmpl")
        bind_contextvars(completion_id=completion_id)
        async with contextlib.AsyncExitStack() as stack:
            places = [self._take_place(stack) for _ in range(request.num_choices)]
            job_ids = [f"{completion_id}/{index}" for index in range(request.num_choices)]
            await stack.enter_async_context(self._concurrency_limit.count_answers_until_exit(caller, job_ids))
            videos, accepted = await self._accept(caller, request, places[0], deadline=deadline)
            yield CompletionStarted(id=completion_id, created_at=time.time(), model=accepted.model)
            model = accepted.model.name
            inputs = await self._prepare(caller.tenant, videos, model=model, deadline=deadline)
            yield FramesSampled(videos=inputs.frames)
            choices = [
                Generation(
                    job_id=job_id,
                    # a seed of its own for each choice, or all would be the same
                    params=replace(accepted.params, seed=(accepted.params.seed + index) & MAX_SEED),
                    place=place,
                )
                for index, (job_id, place) in enumerate(zip(job_ids, places, strict=True))
            ]
            commands = [
                inputs.command(
                    choice,
                    tenant=caller.tenant,
                    system=request.system,
                    turns=_turns(request),
                    priority=min(0, caller.limits.max_priority),
                )
                for choice in choices
            ]
            outputs = self._generate(commands, choices, model=model, deadline=deadline)
            texts = ["" for _ in choices]
            async with contextlib.aclosing(outputs):
                async for output in outputs:
                    texts[output.index] += output.text
                    yield _with_moments(output, texts[output.index], inputs.time_axis)
            yield CompletionEnded(
                num_prompt_tokens=choices[0].num_prompt_tokens,
                num_completion_tokens=sum(choice.num_tokens for choice in choices),
                num_cached_tokens=choices[0].num_cached_tokens,
                num_video_tokens=len(videos) * accepted.model.num_video_tokens,
            )

    def _take_place(self, stack: contextlib.AsyncExitStack) -> Place:
        place = self._admission.take(1)
        stack.callback(place.release)
        return place

    # -- before the first event

    async def _accept(
        self, caller: Caller, request: CompletionRequest, place: Place, *, deadline: float
    ) -> tuple[list[VideoRecord], Accepted]:
        accepted = await self._acceptance.check_fields(request.question, model=request.model)
        if request.videos:
            check_modality(accepted.model, has_videos=True, param=request.videos[0].param)
        turns = _turns(request)
        if len(request.system) + sum(len(turn.text) for turn in turns) > _MAX_CHARACTERS:
            raise InvalidRequest(
                "context_length_exceeded",
                f"All messages together may have at most {_MAX_CHARACTERS} characters.",
                param="messages",
            )
        if len(request.videos) > self._settings.max_videos_per_session:
            raise InvalidRequest(
                "too_many_videos",
                f"A conversation may be about at most {self._settings.max_videos_per_session} videos.",
                param="messages",
            )
        found = {record.id: record for record in [await self._video(caller, source) for source in request.videos]}
        videos = list(found.values())
        with _naming("messages"):
            await self._acceptance.check_videos(caller.tenant, videos, DEFAULT_FRAMES, model=accepted.model)
        prompt = longest_prompt(videos, turns, system=request.system, frames=DEFAULT_FRAMES, info=accepted.model)
        with _naming("messages"):
            await self._acceptance.check_prompt(prompt, model=accepted.model.name, place=place, deadline=deadline)
        return videos, accepted

    async def _video(self, caller: Caller, source: VideoSource) -> VideoRecord:
        """The record of a video, which is received or fetched first if it came with the request."""
        with _naming(source.param):
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

    async def _prepare(self, tenant: str, videos: Sequence[VideoRecord], *, model: str, deadline: float) -> VideoInputs:
        try:
            async with asyncio.timeout(_seconds_left(deadline)):
                return await prepare_videos(
                    self._preparation, self._videos, tenant, videos, DEFAULT_FRAMES, model=model
                )
        except TimeoutError:
            raise deadline_exceeded() from None

    async def _generate(
        self, commands: Sequence[Generate], choices: Sequence[Generation], *, model: str, deadline: float
    ) -> AsyncGenerator[ChoiceOutput, None]:
        """Yield what the choices gain, each a job of its own, until all have ended."""
        metrics = self._metrics.of_model(model)
        queue: asyncio.Queue[Delta | Refused] = asyncio.Queue()
        running: dict[str, tuple[int, Generation]] = {}
        try:
            for index, (command, choice) in enumerate(zip(commands, choices, strict=True)):
                running[choice.job_id] = index, choice
                choice.begin_trace(response_id=choice.job_id, model=model)
                with choice.trace.current():
                    self._pools.generate(command, queue.put_nowait, model=model)
            while running:
                output = await _next(queue, deadline=deadline)
                index, choice = running[output.job_id]
                yield _add(choice, index, output, metrics)
                if choice.finish_reason is not None:
                    del running[output.job_id]
        finally:
            for job_id in running:
                self._pools.abort(job_id)
            for index, choice in enumerate(choices):
                choice.record_end(metrics, choice=index)
                choice.close()


def _add(choice: Generation, index: int, output: Delta | Refused, metrics: ModelMetrics) -> ChoiceOutput:
    """Add a worker's output to a choice.

    Raises:
        ServiceError: the generation failed.
    """
    failure = failure_of(output)
    if isinstance(output, Refused) or failure is not None or output.finish_reason == "abort":
        failure = failure or InternalError("engine_error", "The model failed on this question.")
        choice.fail(failure)
        raise failure
    return ChoiceOutput(
        index=index,
        text=output.text,
        logprobs=choice.add(output, metrics),
        finish_reason=output.finish_reason,
    )


def _turns(request: CompletionRequest) -> tuple[Turn, ...]:
    return (*request.history, Turn(role="user", text=request.question.content))


def _with_moments(output: ChoiceOutput, text: str, axis: VideoTimeAxis | None) -> ChoiceOutput:
    """The output; the last one of a choice with the moments that the whole `text` names."""
    if axis is None or output.finish_reason is None:
        return output
    return replace(output, moments=axis.moments_in(text))


async def _next(queue: "asyncio.Queue[Delta | Refused]", *, deadline: float) -> Delta | Refused:
    try:
        async with asyncio.timeout(_seconds_left(deadline)):
            return await queue.get()
    except TimeoutError:
        raise deadline_exceeded() from None


def _seconds_left(deadline: float) -> float:
    return max(0.0, deadline - time.time())


async def _chunks(data: bytes) -> AsyncIterator[bytes]:
    for start in range(0, len(data), _INLINE_CHUNK):
        yield data[start : start + _INLINE_CHUNK]


@contextlib.contextmanager
def _naming(param: str) -> Iterator[None]:
    """Let a refusal name the field of this request that caused it."""
    try:
        yield
    except ServiceError as error:
        error.param = param if fault_of(error.code) is Fault.CLIENT else error.param
        raise

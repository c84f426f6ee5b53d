"""The pool: keeps worker processes alive, chooses one for each job, and lets no job fall between two.

A job is registered before it is sent. When its worker dies it goes to another one, an answer together with the tokens
it has already. A job under which a second worker dies is suspected to be the cause: from then on suspects go one at a
time, and the one under which a third dies fails with `worker_lost`.
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import structlog

from model.text.conversation import Conversation
from service.errors import InternalError, from_code
from service.ids import new_id
from service.observability import tracing
from service.observability.logging import bound_ids
from service.observability.metrics import Metrics
from service.workers.process import WorkerProcess
from service.workers.protocol import (
    Abort,
    CheckPrompt,
    Delta,
    Encode,
    Encoded,
    Generate,
    ModelInfo,
    NotLoaded,
    Origin,
    Ping,
    Pong,
    PromptChecked,
    Ready,
    Refused,
    Report,
    StepDone,
    WorkerConfig,
)
from service.workers.roles import Place
from service.workers.routing import SLACK, PrefixTable, prefixes

_log = structlog.get_logger(__name__)

_SUSPICIOUS = 2  # deaths of a worker under a job, no token in between: from then on it goes alone
_MAX_DEATHS = 3  # two may be an operator's or the kernel's, one after the other
_MAX_FAILED_STARTS = 3  # in a row, before it is told that there is something to mend
_FIRST_BACKOFF, _LONGEST_BACKOFF = 0.5, 300.0
_CLIP_LOAD = 4.0  # sequences that an encode outweighs: all of its worker wait for it
_CHARACTERS_PER_TOKEN = 4
Sink = Callable[[Delta | Refused], None]
"""Takes a job's output. Each output is a callback of its own on the event loop, in order; the last one ends the job."""

_EMPTY = StepDone(deltas=(), num_running=0, num_waiting=0, kv_cache_usage=0.0, num_preemptions=0)


class WorkersCannotStart(Exception):
    """No question could ever be answered; the message is a sentence for the operator."""


@dataclass(slots=True, eq=False)
class _Job:
    command: Encode | CheckPrompt | Generate
    future: asyncio.Future[Encoded | PromptChecked] | None = None
    worker: WorkerProcess | None = None
    num_deaths: int = 0
    aborted: bool = False
    output_token_ids: list[int] = field(default_factory=list)
    num_cached_tokens: int | None = None
    prefixes: tuple[bytes, ...] = ()
    sink: Sink | None = None
    submitted_at: float = field(default_factory=time.monotonic)

    @property
    def is_suspect(self) -> bool:
        """Whether workers may die of it."""
        return self.num_deaths >= _SUSPICIOUS

    @property
    def num_seqs(self) -> int:
        """Sequences it is in an engine."""
        return self.command.params.num_beams if isinstance(self.command, Generate) else 0

    def suits(self, place: Place) -> bool:
        """Whether a worker at this place could do it."""
        return place.encodes if isinstance(self.command, Encode) else place.generates


@dataclass(slots=True, eq=False)
class _Seat:
    """One of the workers there shall be, whichever process it is at the moment."""

    config: WorkerConfig
    num_failed_starts: int = 0
    told: str = ""
    """What the process that starts has said to be in its way."""
    reason: str = ""
    """Why the last one did not start."""

    @property
    def is_broken(self) -> bool:
        """Whether it has failed too often to be still on its way."""
        return self.num_failed_starts >= _MAX_FAILED_STARTS

    @property
    def problem(self) -> str:
        """What is wrong, for the operator."""
        place = self.config.place
        return f"Worker {self.config.number} ({place.role}, device {place.device}) does not start: {self.reason}"


class Pool:
    """The workers of one replica."""

    def __init__(
        self,
        configs: Sequence[WorkerConfig],
        *,
        encode_timeout: float,
        metrics: Metrics,
        worker_timeout: float = 30.0,
    ) -> None:
        self._seats = tuple(_Seat(config) for config in configs)
        self._encode_timeout = encode_timeout
        self._worker_timeout = worker_timeout
        self._metrics = metrics
        self._jobs: dict[str, _Job] = {}
        self._starting: set[WorkerProcess] = set()
        self._ready: dict[WorkerProcess, StepDone] = {}
        self._restarts: set[asyncio.Task[None]] = set()
        self._table: PrefixTable[WorkerProcess] = PrefixTable()
        self._closing = False
        self._watchdog: asyncio.Task[None] | None = None
        self._info: asyncio.Future[ModelInfo] = asyncio.get_running_loop().create_future()
        self._started: asyncio.Future[ModelInfo] = asyncio.get_running_loop().create_future()
        self._started.add_done_callback(
            lambda started: started.cancelled() or started.exception()
        )  # it may interest nobody
        metrics.workers_configured.set(len(self._seats))
        metrics.workers_ready.set_function(lambda: len(self._ready))

    def __repr__(self) -> str:
        return (
            f"Pool(ready={len(self._ready)}, starting={len(self._starting)}, "
            f"jobs={len(self._jobs)}, waiting={sum(job.worker is None for job in self._jobs.values())})"
        )

    @property
    def ready(self) -> bool:
        """Whether a video would be encoded now, and a question about it answered."""
        places = [worker.place for worker in self._ready]
        return any(place.encodes for place in places) and any(place.generates for place in places)

    @property
    def problems(self) -> tuple[str, ...]:
        """A sentence for each worker that has failed to start again and again, and why; it is still tried."""
        return tuple(seat.problem for seat in self._seats if seat.is_broken)

    @property
    def pids(self) -> tuple[int, ...]:
        """The process ids of all workers."""
        return tuple(worker.pid for worker in (*self._starting, *self._ready))

    async def info(self, *, timeout: float) -> ModelInfo:
        """The loaded model; waits for the first worker.

        Raises:
            TimeoutError: no worker became ready in time.
        """
        return await asyncio.wait_for(asyncio.shield(self._info), timeout)

    async def started(self) -> ModelInfo:
        """The loaded model, once the pool has been ready for the first time.

        Raises:
            WorkersCannotStart: it will not be.
        """
        return await asyncio.shield(self._started)

    def start(self) -> None:
        """Start the worker processes; returns at once."""
        for seat in self._seats:
            self._start_worker(seat)
        self._watchdog = asyncio.create_task(self._watch())

    def retire(self) -> None:
        """Take no more jobs and replace no worker that ends."""
        self._closing = True

    async def close(self) -> None:
        """End all workers; what still runs fails."""
        self.retire()
        if self._watchdog is not None:
            self._watchdog.cancel()
        for task in self._restarts:
            task.cancel()
        for worker in self._starting:
            worker.kill()  # it has nothing in hand, and would hear of the end only when the model is loaded
        workers = [*self._starting, *self._ready]
        await asyncio.gather(*(worker.stop() for worker in workers))
        for job_id in list(self._jobs):
            self._fail(job_id, "worker_lost", "The service is shutting down.")
        self._info.cancel()
        self._started.cancel()
        await asyncio.sleep(0)  # the sinks have taken what was left

    async def encode(self, command: Encode) -> Encoded:
        """Compute a clip's features.

        Raises:
            ServiceError: the worker refused the clip, or was lost, or took longer than the time allowed.
        """
        try:
            result = await asyncio.wait_for(self._result(command), self._encode_timeout)
        except TimeoutError:
            raise InternalError("encode_failed", "Encoding the video took too long.") from None
        assert isinstance(result, Encoded)
        return result

    async def check(self, conversation: Conversation) -> int:
        """Count a prompt's tokens.

        Raises:
            ServiceError: the prompt can never run.
        """
        result = await self._result(CheckPrompt(job_id=new_id("req"), conversation=conversation))
        assert isinstance(result, PromptChecked)
        return result.num_prompt_tokens

    def generate(self, command: Generate, sink: Sink) -> None:
        """Start an answer, or continue one.

        `sink` gets every output up to the end, which is a `Refused` or a `Delta` with a `finish_reason`. It is called on
        the event loop, never from within a method of the pool.

        Raises:
            InternalError: the pool is closing; `sink` is not called.
        """
        self._submit(
            _Job(
                command,
                sink=sink,
                output_token_ids=list(command.output_token_ids),
                prefixes=prefixes(command.conversation, command.feature_keys, salt=command.cache_salt),
            )
        )

    def abort(self, job_id: str) -> None:
        """Stop an answer; its end comes through its sink. Nothing happens if it has ended."""
        job = self._jobs.get(job_id)
        if job is None or job.aborted:
            return
        job.aborted = True
        if job.worker is None:
            self._end_aborted(job_id, job)
        else:
            job.worker.send(Abort(job_id=job_id))

    async def _result(self, command: Encode | CheckPrompt) -> Encoded | PromptChecked:
        future: asyncio.Future[Encoded | PromptChecked] = asyncio.get_running_loop().create_future()
        self._submit(_Job(command, future))
        try:
            return await future
        finally:
            job = self._jobs.pop(command.job_id, None)
            if job is not None and job.worker is not None and isinstance(command, Encode):
                job.worker.kill()  # given up in mid-encode: only a new worker is sure to be free
            if job is not None and job.is_suspect:
                self._dispatch_waiting()

    def _submit(self, job: _Job) -> None:
        if self._closing:
            raise InternalError("worker_lost", "The service is shutting down.")
        if not isinstance(job.command, CheckPrompt):
            job.command = replace(job.command, origin=Origin(ids=bound_ids(), traceparent=tracing.traceparent()))
        self._jobs[job.command.job_id] = job
        self._dispatch(job)

    def _dispatch(self, job: _Job) -> None:
        """Send a job to the worker for it; one that has to wait is sent later, and has a deadline of its own."""
        able = sorted(self._ready, key=lambda worker: worker.place.role == "all")  # who can do nothing else goes first
        loads = {worker: self._load(worker) for worker in able if job.suits(worker.place)}
        if not loads or (job.is_suspect and any(other.is_suspect and other.worker for other in self._jobs.values())):
            return
        job.worker = self._table.choose(job.prefixes, loads)
        self._table.remember(job.prefixes, job.worker)
        command = job.command
        if isinstance(command, Generate):
            command = replace(command, output_token_ids=tuple(job.output_token_ids))
        job.worker.send(command)

    def _dispatch_waiting(self) -> None:
        for job in [job for job in self._jobs.values() if job.worker is None]:
            self._dispatch(job)

    def _load(self, worker: WorkerProcess) -> float:
        """What a worker has to do, counted in sequences; one at its full length counts as two."""
        jobs = [job for job in self._jobs.values() if job.worker is worker]
        is_full = sum(job.num_seqs for job in jobs) >= self._seats[worker.number].config.max_num_seqs
        return sum(map(self._weight, jobs)) + SLACK * is_full  # for a free place, a shared prefix is given up

    def _weight(self, job: _Job) -> float:
        match job.command:
            case Encode():
                return _CLIP_LOAD
            case Generate(conversation=conversation):
                info = self._info.result()
                num_characters = len(conversation.system) + sum(len(turn.text) for turn in conversation.turns)
                num_tokens = num_characters // _CHARACTERS_PER_TOKEN + len(job.output_token_ids)
                num_tokens += len(conversation.clips) * info.num_video_tokens
                return job.num_seqs * (1 + num_tokens / info.max_model_len)
            case _:
                return 0.0

    # -- reports

    def _on_report(self, worker: WorkerProcess, report: Report) -> None:
        match report:
            case Ready():
                self._on_ready(worker, report.info)
            case NotLoaded():
                seat = self._seats[worker.number]
                seat.told = report.reason
                seat.num_failed_starts = max(seat.num_failed_starts, _MAX_FAILED_STARTS - 1)  # its end is one more
            case Encoded():
                self._on_encoded(report)
                self._settle(report.job_id, report)
            case PromptChecked():
                self._settle(report.job_id, report)
            case Refused():
                self._fail(report.job_id, report.code, report.message)
            case StepDone():
                self._on_step(worker, report)
            case Pong():  # whatever comes shows that the worker lives; this, how much room it takes
                self._metrics.show_memory(
                    worker.number, resident_bytes=report.resident_bytes, device_bytes=report.device_bytes
                )

    def _on_ready(self, worker: WorkerProcess, info: ModelInfo) -> None:
        seat = self._seats[worker.number]
        self._starting.discard(worker)
        self._ready[worker] = _EMPTY
        seat.num_failed_starts = 0
        if not self._info.done():
            self._info.set_result(info)
            self._metrics.show_model(info)
        if self.ready and not self._started.done():
            self._started.set_result(info)
        _log.info("worker_ready", worker=worker.number, role=worker.place.role, pid=worker.pid, model=info.name)
        self._dispatch_waiting()

    def _on_encoded(self, encoded: Encoded) -> None:
        self._metrics.encode_batch_clips.observe(encoded.num_batched_clips)
        job = self._jobs.get(encoded.job_id)
        if job is not None:
            batch_seconds = encoded.seconds * encoded.num_batched_clips
            self._metrics.video_encode_queue.observe(max(0.0, time.monotonic() - job.submitted_at - batch_seconds))

    def _on_step(self, worker: WorkerProcess, step: StepDone) -> None:
        if worker in self._ready:
            self._metrics.show_step(worker.number, step, before=self._ready[worker])
            self._ready[worker] = step
        for delta in step.deltas:
            job = self._jobs.get(delta.job_id)
            if job is not None and job.worker is worker:
                self._gain(job, delta)

    def _gain(self, job: _Job, delta: Delta) -> None:
        if delta.token_ids and job.num_cached_tokens is None:
            job.num_cached_tokens = delta.num_cached_tokens  # later it may have found what it had computed itself
            self._metrics.prefix_cache_queries.inc(delta.num_prompt_tokens)
            self._metrics.prefix_cache_hits.inc(delta.num_cached_tokens)
            queue_seconds = max(0.0, time.monotonic() - job.submitted_at - delta.running_seconds)
            self._metrics.request_queue_time.observe(queue_seconds)
            self._metrics.request_prefill_time.observe(delta.running_seconds)
            parent = None if isinstance(job.command, CheckPrompt) else job.command.origin.traceparent
            if parent is not None:
                tracing.record("queue", seconds=queue_seconds, ended_ago=delta.running_seconds, parent=parent)
            delta = replace(delta, queue_seconds=queue_seconds)
        job.output_token_ids.extend(delta.token_ids)
        was_suspect = job.is_suspect
        job.num_deaths = 0  # what goes on is not what kills workers
        if delta.finish_reason is not None:
            del self._jobs[delta.job_id]
            delta = replace(delta, num_cached_tokens=job.num_cached_tokens or 0)
        self._put(job, delta)
        if was_suspect:
            self._dispatch_waiting()

    def _settle(self, job_id: str, result: Encoded | PromptChecked) -> None:
        job = self._jobs.pop(job_id, None)
        if job is not None and job.future is not None and not job.future.done():
            job.future.set_result(result)
        if job is not None and job.is_suspect:
            self._dispatch_waiting()

    def _fail(self, job_id: str, code: str, message: str) -> None:
        job = self._jobs.pop(job_id, None)
        if job is None:
            return
        self._put(job, Refused(job_id=job_id, code=code, message=message))
        if job.future is not None and not job.future.done():
            job.future.set_exception(from_code(code, message))
        if job.is_suspect:
            self._dispatch_waiting()

    # -- lives and deaths

    def _start_worker(self, seat: _Seat) -> None:
        seat.told = ""
        self._starting.add(WorkerProcess(seat.config, on_report=self._on_report, on_death=self._on_death))

    def _on_death(self, worker: WorkerProcess) -> None:
        seat = self._seats[worker.number]
        was_starting = worker in self._starting
        self._starting.discard(worker)
        self._table.forget(worker)
        if (last := self._ready.pop(worker, None)) is not None:
            self._metrics.show_step(worker.number, _EMPTY, before=replace(last, num_preemptions=0))
            self._metrics.show_memory(worker.number, resident_bytes=0, device_bytes=0)
        if self._closing:
            return
        if was_starting:
            seat.num_failed_starts += 1
            seat.reason = seat.told or f"its process ended with status {worker.exit_status} while it loaded the model."
        delay = _backoff(seat.num_failed_starts)
        if seat.is_broken:
            _log.error("worker_does_not_start", problem=seat.problem, next_try_in=delay)
        else:
            _log.error("worker_died", worker=worker.number, pid=worker.pid, while_starting=was_starting)
        self._metrics.worker_restarts.inc()
        self._give_up_if_hopeless()
        restart = asyncio.create_task(self._restart_after(delay, seat))
        self._restarts.add(restart)
        restart.add_done_callback(self._restarts.discard)
        self._rescue({job_id: job for job_id, job in self._jobs.items() if job.worker is worker})

    def _give_up_if_hopeless(self) -> None:
        """If the pool never was ready, and all who could do one of its two works are broken, say so."""
        encoders = [seat for seat in self._seats if seat.config.place.encodes]
        answerers = [seat for seat in self._seats if seat.config.place.generates]
        for able in (encoders, answerers):
            if able and all(seat.is_broken for seat in able) and not self._started.done():
                self._started.set_exception(WorkersCannotStart(able[0].reason))

    async def _restart_after(self, delay: float, seat: _Seat) -> None:
        while True:
            await asyncio.sleep(delay)
            try:
                self._start_worker(seat)
            except OSError:  # no memory, no process id: it may pass
                _log.exception("worker_not_started")
                delay = _LONGEST_BACKOFF
            else:
                return

    async def _watch(self) -> None:
        """End workers that live but do not answer: their jobs go to others."""
        while True:
            await asyncio.sleep(self._worker_timeout / 6)
            for worker in list(self._ready):
                if worker.seconds_silent > self._worker_timeout:
                    _log.error("worker_hangs", pid=worker.pid, seconds=round(worker.seconds_silent))
                    worker.kill()
                worker.send(Ping())

    def _rescue(self, jobs: dict[str, _Job]) -> None:
        """Send the jobs of a dead worker elsewhere, but for the one that it seems to have died of."""
        for job_id, job in jobs.items():
            job.worker = None
            job.num_deaths += 1
            if job.aborted:
                self._end_aborted(job_id, job)
        for job_id, job in jobs.items():
            if job.num_deaths >= _MAX_DEATHS and not job.aborted:
                self._fail(job_id, "worker_lost", "Workers died while they did this; it is not tried again.")
        self._dispatch_waiting()

    def _end_aborted(self, job_id: str, job: _Job) -> None:
        del self._jobs[job_id]
        self._put(
            job,
            Delta(
                job_id=job_id,
                text="",
                token_ids=(),
                finish_reason="abort",
                num_prompt_tokens=0,
                num_cached_tokens=0,
                num_output_tokens=len(job.output_token_ids),
            ),
        )

    def _put(self, job: _Job, output: Delta | Refused) -> None:
        if job.sink is not None:
            asyncio.get_running_loop().call_soon(job.sink, output)  # not now: a sink may call the pool


def _backoff(num_failed_starts: int) -> float:
    """Seconds until a worker is started again; at once if it had been up."""
    return min(_FIRST_BACKOFF * 2 ** (num_failed_starts - 1), _LONGEST_BACKOFF) if num_failed_starts else 0.0

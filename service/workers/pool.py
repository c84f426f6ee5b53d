"""The pool: keeps worker processes alive, hands jobs to the least busy one, and lets no job fall between two.

A job is registered before it is sent. When its worker dies it goes to another one, an answer together with the tokens
it has already; a job that sees a second worker die under it is taken to be the cause and fails with `worker_lost`.
"""

import asyncio
from dataclasses import dataclass, field, replace

import structlog

from model.conversation import Conversation
from service.errors import InternalError, from_code
from service.ids import new_id
from service.metrics import Metrics
from service.workers.process import WorkerProcess
from service.workers.protocol import (
    Abort,
    CheckPrompt,
    Delta,
    Encode,
    Encoded,
    Generate,
    ModelInfo,
    Ping,
    Pong,
    PromptChecked,
    Ready,
    Refused,
    Report,
    StepDone,
    WorkerConfig,
)

_log = structlog.get_logger(__name__)

_MAX_DEATHS = 2
_BACKOFF = (0.0, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)


@dataclass(slots=True, eq=False)
class _Job:
    command: Encode | CheckPrompt | Generate
    future: asyncio.Future[Encoded | PromptChecked] | None = None
    worker: WorkerProcess | None = None
    num_deaths: int = 0
    aborted: bool = False
    output_token_ids: list[int] = field(default_factory=list)


class Pool:
    """The workers of one replica."""

    def __init__(
        self,
        config: WorkerConfig,
        *,
        num_workers: int,
        encode_timeout: float,
        metrics: Metrics,
        worker_timeout: float = 30.0,
    ) -> None:
        self._config = config
        self._num_workers = num_workers
        self._encode_timeout = encode_timeout
        self._worker_timeout = worker_timeout
        self._metrics = metrics
        self._jobs: dict[str, _Job] = {}
        self._starting: set[WorkerProcess] = set()
        self._ready: dict[WorkerProcess, StepDone] = {}
        self._restarts: set[asyncio.Task[None]] = set()
        self._num_failed_starts = 0
        self._closing = False
        self._watchdog: asyncio.Task[None] | None = None
        self._info: asyncio.Future[ModelInfo] = asyncio.get_running_loop().create_future()
        self.outputs: asyncio.Queue[Delta | Refused] = asyncio.Queue()
        """What the answers gain, in order; the reader takes all there is at once."""

    def __repr__(self) -> str:
        return (
            f"Pool(ready={len(self._ready)}, starting={len(self._starting)}, "
            f"jobs={len(self._jobs)}, waiting={sum(job.worker is None for job in self._jobs.values())})"
        )

    @property
    def ready(self) -> bool:
        """Whether at least one worker would take a question now."""
        return bool(self._ready)

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

    def start(self) -> None:
        """Start the worker processes; returns at once."""
        for _ in range(self._num_workers):
            self._start_worker()
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

    def generate(self, command: Generate) -> None:
        """Begin an answer; what it gains comes through `outputs`, its end included."""
        self._submit(_Job(command))

    def abort(self, job_id: str) -> None:
        """Stop an answer; its end comes through `outputs`. Nothing happens if it has ended."""
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

    def _submit(self, job: _Job) -> None:
        if self._closing:
            raise InternalError("worker_lost", "The service is shutting down.")
        self._jobs[job.command.job_id] = job
        self._dispatch(job)

    def _dispatch(self, job: _Job) -> None:
        if not self._ready:
            return  # sent when a worker is ready; every waiter has a deadline of its own
        load = dict.fromkeys(self._ready, 0)
        for other in self._jobs.values():
            if other.worker in load:
                load[other.worker] += 1
        job.worker = min(load, key=load.__getitem__)
        command = job.command
        if isinstance(command, Generate):
            command = replace(command, output_token_ids=tuple(job.output_token_ids))
        job.worker.send(command)

    # -- reports

    def _on_report(self, worker: WorkerProcess, report: Report) -> None:
        match report:
            case Ready():
                self._on_ready(worker, report.info)
            case Encoded() | PromptChecked():
                self._settle(report.job_id, report)
            case Refused():
                self._fail(report.job_id, report.code, report.message)
            case StepDone():
                self._on_step(worker, report)
            case Pong():
                pass  # whatever comes shows that the worker lives

    def _on_ready(self, worker: WorkerProcess, info: ModelInfo) -> None:
        self._starting.discard(worker)
        self._ready[worker] = StepDone(deltas=(), num_running=0, num_waiting=0)
        self._num_failed_starts = 0
        if not self._info.done():
            self._info.set_result(info)
        _log.info("worker_ready", pid=worker.pid, model=info.name)
        for job in [job for job in self._jobs.values() if job.worker is None]:
            self._dispatch(job)

    def _on_step(self, worker: WorkerProcess, step: StepDone) -> None:
        if worker in self._ready:
            self._ready[worker] = step
            self._show_load()
        for delta in step.deltas:
            job = self._jobs.get(delta.job_id)
            if job is None or job.worker is not worker:
                continue
            job.output_token_ids.extend(delta.token_ids)
            job.num_deaths = 0  # what goes on is not what kills workers
            if delta.finish_reason is not None:
                del self._jobs[delta.job_id]
            self.outputs.put_nowait(delta)

    def _show_load(self) -> None:
        self._metrics.num_requests_running.set(sum(step.num_running for step in self._ready.values()))
        self._metrics.num_requests_waiting.set(sum(step.num_waiting for step in self._ready.values()))

    def _settle(self, job_id: str, result: Encoded | PromptChecked) -> None:
        job = self._jobs.pop(job_id, None)
        if job is not None and job.future is not None and not job.future.done():
            job.future.set_result(result)

    def _fail(self, job_id: str, code: str, message: str) -> None:
        job = self._jobs.pop(job_id, None)
        if job is None:
            return
        if job.future is None:
            self.outputs.put_nowait(Refused(job_id=job_id, code=code, message=message))
        elif not job.future.done():
            job.future.set_exception(from_code(code, message))

    # -- lives and deaths

    def _start_worker(self) -> None:
        self._starting.add(WorkerProcess(self._config, on_report=self._on_report, on_death=self._on_death))

    def _on_death(self, worker: WorkerProcess) -> None:
        was_starting = worker in self._starting
        self._starting.discard(worker)
        self._ready.pop(worker, None)
        self._show_load()
        if self._closing:
            return
        self._num_failed_starts += was_starting
        _log.error("worker_died", pid=worker.pid, while_starting=was_starting)
        self._metrics.worker_restarts.inc()
        delay = _BACKOFF[min(self._num_failed_starts, len(_BACKOFF) - 1)]
        restart = asyncio.create_task(self._restart_after(delay))
        self._restarts.add(restart)
        restart.add_done_callback(self._restarts.discard)
        for job_id, job in [(i, job) for i, job in self._jobs.items() if job.worker is worker]:
            self._rescue(job_id, job)

    async def _restart_after(self, delay: float) -> None:
        while True:
            await asyncio.sleep(delay)
            try:
                self._start_worker()
            except OSError:  # no memory, no process id: it may pass
                _log.exception("worker_not_started")
                delay = _BACKOFF[-1]
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

    def _rescue(self, job_id: str, job: _Job) -> None:
        job.worker = None
        job.num_deaths += 1
        if job.aborted:
            self._end_aborted(job_id, job)
        elif job.num_deaths >= _MAX_DEATHS:
            self._fail(job_id, "worker_lost", "The worker died twice while it did this; it is not tried again.")
        else:
            self._dispatch(job)

    def _end_aborted(self, job_id: str, job: _Job) -> None:
        del self._jobs[job_id]
        self.outputs.put_nowait(
            Delta(
                job_id=job_id,
                text="",
                token_ids=(),
                finish_reason="abort",
                num_prompt_tokens=0,
                num_output_tokens=len(job.output_token_ids),
            )
        )

"""Sends each job to a worker and delivers its output; sends the jobs of a dead worker to other workers.

A job is registered before it is sent. When its worker dies, it goes to another worker, and an answer keeps its tokens.
A job whose workers died twice with no output in between is suspected to be the cause: only one suspect runs at a time,
and after a third death the job fails with `worker_lost`.
"""

import asyncio
import time
from dataclasses import replace

from service.errors import InternalError, ServiceError, from_code
from service.observability import tracing
from service.observability.logging import bound_ids
from service.observability.model_metrics import ModelMetrics
from service.workers.job import MAX_DEATHS, Job, Sink
from service.workers.process import WorkerProcess
from service.workers.protocol import (
    Abort,
    CheckPrompt,
    Delta,
    Encode,
    Encoded,
    Generate,
    JobReport,
    ModelInfo,
    PromptChecked,
    Refused,
    RequestContext,
    StepDone,
)
from service.workers.routing import MAX_EXTRA_LOAD, PrefixTable, prompt_prefixes

SHUTDOWN = InternalError("worker_lost", "The service is shutting down.")
"""Why jobs fail when the service ends."""
_NO_STEP = StepDone(deltas=(), num_running=0, num_waiting=0, kv_cache_usage=0.0, num_preemptions=0)


class Dispatcher:
    """The jobs of one model and the workers that take them.

    All state changes in synchronous methods on the event loop. Results and outputs are delivered later, in callbacks of
    their own, so that a sink may call any method.
    """

    def __init__(self, *, metrics: ModelMetrics) -> None:
        self._metrics = metrics
        self._jobs: dict[str, Job] = {}
        self._last_steps: dict[WorkerProcess, StepDone] = {}
        """The last step of each worker that takes jobs."""
        self._info: ModelInfo | None = None
        self._prefix_table: PrefixTable[WorkerProcess] = PrefixTable()
        self._cause: ServiceError | None = None
        """Why no new jobs are taken; None while they are."""

    def __repr__(self) -> str:
        num_waiting = sum(job.worker is None for job in self._jobs.values())
        return f"Dispatcher(jobs={len(self._jobs)}, waiting={num_waiting})"

    # -- jobs

    def generate(self, command: Generate, sink: Sink) -> None:
        """Start a `Generate` job.

        Raises:
            ServiceError: the dispatcher is closing; the error is the cause given to `retire`.
        """
        self._submit(
            Job(
                command=replace(command, context=_request_context()),
                sink=sink,
                output_token_ids=list(command.output_token_ids),
                prefixes=prompt_prefixes(command.conversation, command.feature_keys, salt=command.cache_salt),
            )
        )

    async def encode(self, command: Encode) -> Encoded:
        """Run an `Encode` job. When the caller is cancelled during the encode, its worker is killed.

        Raises:
            ServiceError: the job failed.
        """
        result = await self._run(replace(command, context=_request_context()))
        assert isinstance(result, Encoded)
        return result

    async def check(self, command: CheckPrompt) -> PromptChecked:
        """Run a `CheckPrompt` job.

        Raises:
            ServiceError: the job failed.
        """
        result = await self._run(command)
        assert isinstance(result, PromptChecked)
        return result

    def abort(self, job_id: str) -> None:
        """Abort a `Generate` job; does nothing if it has ended. The sink still receives the end."""
        job = self._jobs.get(job_id)
        if job is None or job.is_aborted:
            return
        job.is_aborted = True
        if job.worker is None:
            self._end_aborted(job)
        else:
            job.worker.send(Abort(job_id=job_id))

    @property
    def num_jobs(self) -> int:
        """Jobs that have not ended."""
        return len(self._jobs)

    def retire(self, cause: ServiceError = SHUTDOWN) -> None:
        """Refuse new jobs with the code and message of `cause`, and leave those of a dead worker where they are."""
        self._cause = self._cause or cause

    def close(self, cause: ServiceError = SHUTDOWN) -> None:
        """Fail all jobs that have not ended, with the code and message of `cause`."""
        self.retire(cause)
        for job_id in list(self._jobs):
            self._fail(Refused(job_id=job_id, code=cause.code, message=cause.message))

    # -- workers

    def add_worker(self, worker: WorkerProcess, info: ModelInfo) -> None:
        """Send jobs to this worker from now on."""
        self._info = info
        self._last_steps[worker] = _NO_STEP
        self._dispatch_waiting()

    def remove_worker(self, worker: WorkerProcess) -> None:
        """Send the jobs of a dead worker to other workers.

        Aborted jobs end instead, and jobs with too many deaths fail.
        """
        self._prefix_table.remove(worker)
        last_step = self._last_steps.pop(worker, None)
        if last_step is not None:
            self._metrics.show_step(worker.number, _NO_STEP, before=replace(last_step, num_preemptions=0))
        if self._cause is not None:
            return
        for job in [job for job in self._jobs.values() if job.worker is worker]:
            job.worker = None
            job.num_deaths += 1
            if job.is_aborted:
                self._end_aborted(job)
            elif job.num_deaths >= MAX_DEATHS:
                message = "Three workers died while they ran this; it is not retried."
                self._fail(Refused(job_id=job.command.job_id, code="worker_lost", message=message))
        self._dispatch_waiting()

    def receive(self, worker: WorkerProcess, report: JobReport) -> None:
        """Apply a worker's report to its jobs."""
        match report:
            case Encoded():
                self._observe_encode(report)
                self._complete(report)
            case PromptChecked():
                self._complete(report)
            case Refused():
                self._fail(report)
            case StepDone():
                self._on_step(worker, report)

    # -- choosing a worker

    def _submit(self, job: Job) -> None:
        if self._cause is not None:
            raise from_code(self._cause.code, self._cause.message)
        self._jobs[job.command.job_id] = job
        self._dispatch(job)

    def _dispatch(self, job: Job) -> None:
        """Send a job to a worker; if none can take it now, the job waits. Its caller limits how long."""
        workers = sorted(self._last_steps, key=lambda worker: worker.spec.role == "all")  # prefer specialised workers
        loads = {worker: self._load(worker) for worker in workers if job.can_run_on(worker.spec)}
        if not loads or (job.is_suspect and any(other.is_suspect and other.worker for other in self._jobs.values())):
            return
        job.worker = self._prefix_table.choose(job.prefixes, loads)
        self._prefix_table.add(job.prefixes, job.worker)
        job.worker.send(job.command_to_send())

    def _dispatch_waiting(self) -> None:
        for job in [job for job in self._jobs.values() if job.worker is None]:
            self._dispatch(job)

    def _load(self, worker: WorkerProcess) -> float:
        """The load of a worker, in sequences. A full batch adds so much that a free worker is preferred to a prefix."""
        assert self._info is not None, "a worker was added"
        jobs = [job for job in self._jobs.values() if job.worker is worker]
        is_full = sum(job.num_seqs for job in jobs) >= worker.config.max_num_seqs
        return sum(job.load(self._info) for job in jobs) + MAX_EXTRA_LOAD * is_full

    # -- results

    async def _run(self, command: Encode | CheckPrompt) -> Encoded | PromptChecked:
        future: asyncio.Future[Encoded | PromptChecked] = asyncio.get_running_loop().create_future()
        self._submit(Job(command=command, future=future))
        try:
            return await future
        finally:
            job = self._jobs.get(command.job_id)  # still there if the caller was cancelled
            if job is not None:
                self._remove(job)
                if job.worker is not None and isinstance(command, Encode):
                    job.worker.kill()  # an encode cannot be interrupted; a new worker is free sooner

    def _complete(self, result: Encoded | PromptChecked) -> None:
        job = self._jobs.get(result.job_id)
        if job is not None:
            if job.future is not None and not job.future.done():
                job.future.set_result(result)
            self._remove(job)

    def _fail(self, failure: Refused) -> None:
        job = self._jobs.get(failure.job_id)
        if job is not None:
            if job.future is not None and not job.future.done():
                job.future.set_exception(from_code(failure.code, failure.message))
            self._put(job, failure)
            self._remove(job)

    def _end_aborted(self, job: Job) -> None:
        """End an aborted job that no worker has."""
        self._put(
            job,
            Delta(
                job_id=job.command.job_id,
                text="",
                token_ids=(),
                finish_reason="abort",
                num_prompt_tokens=0,
                num_cached_tokens=0,
                num_output_tokens=len(job.output_token_ids),
            ),
        )
        self._remove(job)

    def _on_step(self, worker: WorkerProcess, step: StepDone) -> None:
        if worker in self._last_steps:
            self._metrics.show_step(worker.number, step, before=self._last_steps[worker])
            self._last_steps[worker] = step
        for delta in step.deltas:
            job = self._jobs.get(delta.job_id)
            if job is not None and job.worker is worker:
                self._on_delta(job, delta)

    def _on_delta(self, job: Job, delta: Delta) -> None:
        if delta.token_ids and job.num_cached_tokens is None:
            job.num_cached_tokens = delta.num_cached_tokens
            delta = replace(delta, queue_seconds=self._observe_prefill(job, delta))
        job.output_token_ids.extend(delta.token_ids)
        was_suspect = job.is_suspect
        job.num_deaths = 0  # a job with output does not kill its worker
        if delta.finish_reason is not None:
            delta = replace(delta, num_cached_tokens=job.num_cached_tokens or 0)
            self._remove(job)
        self._put(job, delta)
        if was_suspect:
            self._dispatch_waiting()

    def _put(self, job: Job, output: Delta | Refused) -> None:
        if job.sink is not None:
            asyncio.get_running_loop().call_soon(job.sink, output)

    def _remove(self, job: Job) -> None:
        del self._jobs[job.command.job_id]
        if job.is_suspect:
            self._dispatch_waiting()  # the next suspect may run

    # -- metrics

    def _observe_encode(self, encoded: Encoded) -> None:
        self._metrics.encode_batch_clips.observe(encoded.num_batched_clips)
        job = self._jobs.get(encoded.job_id)
        if job is not None:
            batch_seconds = encoded.seconds * encoded.num_batched_clips
            self._metrics.video_encode_queue.observe(max(0.0, time.monotonic() - job.submitted_at - batch_seconds))

    def _observe_prefill(self, job: Job, delta: Delta) -> float:
        """Record the metrics of a job's first tokens; return the seconds that it waited to join a batch."""
        queue_seconds = max(0.0, time.monotonic() - job.submitted_at - delta.running_seconds)
        self._metrics.prefix_cache_queries.inc(delta.num_prompt_tokens)
        self._metrics.prefix_cache_hits.inc(delta.num_cached_tokens)
        self._metrics.request_queue_time.observe(queue_seconds)
        self._metrics.request_prefill_time.observe(delta.running_seconds)
        parent = job.command.context.traceparent if isinstance(job.command, Generate) else None
        if parent is not None:
            tracing.record("queue", seconds=queue_seconds, ended_ago=delta.running_seconds, parent=parent)
        return queue_seconds


def _request_context() -> RequestContext:
    return RequestContext(ids=bound_ids(), traceparent=tracing.traceparent())

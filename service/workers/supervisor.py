"""Keeps the worker processes of a model running: starts them, restarts them after a death, kills those that hang."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Literal

import structlog

from service.errors import encodable
from service.observability.model_metrics import ModelMetrics
from service.workers.configured_worker import LONGEST_BACKOFF, MAX_FAILED_STARTS, ConfiguredWorker, Placement
from service.workers.process import WorkerProcess
from service.workers.protocol import JobReport, LoadFailed, ModelInfo, Ping, Pong, Ready, Report, WorkerConfig

_log = structlog.get_logger(__name__)

ModelState = Literal["loading", "ready", "broken", "unloading"]
"""`broken`: no worker can start that encodes, or none that generates; the starts are repeated ever more rarely."""


class WorkersCannotStart(Exception):
    """No worker can start that encodes, or none that generates; the message is a sentence for the operator."""


class Supervisor:
    """Starts one process for each worker configuration of a model and replaces processes that end.

    `on_ready` gets each process that has loaded its model, `on_job_report` the reports about jobs, and `on_death` each
    process that has ended. All are called on the event loop.
    """

    def __init__(
        self,
        configs: Sequence[WorkerConfig],
        *,
        worker_timeout: float,
        metrics: ModelMetrics,
        on_ready: Callable[[WorkerProcess, ModelInfo], None],
        on_job_report: Callable[[WorkerProcess, JobReport], None],
        on_death: Callable[[WorkerProcess], None],
    ) -> None:
        self._workers = {config.number: ConfiguredWorker(config) for config in configs}
        self._worker_timeout = worker_timeout
        self._metrics = metrics
        self._on_ready = on_ready
        self._on_job_report = on_job_report
        self._on_death = on_death
        self._starting: set[WorkerProcess] = set()
        self._ready: set[WorkerProcess] = set()
        self._restarts: set[asyncio.Task[None]] = set()
        self._watchdog: asyncio.Task[None] | None = None
        self._is_closing = False
        self._sees_videos = True
        """Whether the model needs a worker that encodes; known when the first worker is ready."""
        self._info: asyncio.Future[ModelInfo] = asyncio.get_running_loop().create_future()
        self._started: asyncio.Future[ModelInfo] = asyncio.get_running_loop().create_future()
        self._started.add_done_callback(lambda started: started.cancelled() or started.exception())  # marks it as seen
        metrics.workers_configured.set(len(self._workers))
        metrics.workers_ready.set_function(lambda: len(self._ready))

    def __repr__(self) -> str:
        return f"Supervisor(ready={len(self._ready)}, starting={len(self._starting)})"

    @property
    def ready(self) -> bool:
        """Whether a worker that generates is ready, and one that encodes if the model sees videos."""
        specs = [worker.spec for worker in self._ready]
        can_encode = any(spec.encodes for spec in specs) or not self._sees_videos
        return can_encode and any(spec.generates for spec in specs)

    @property
    def state(self) -> ModelState:
        """Whether the model can be used now, or will be soon."""
        if self.ready:
            return "ready"
        return "broken" if self._broken_workers else "loading"

    @property
    def problems(self) -> tuple[str, ...]:
        """A sentence for each worker that has failed to start several times in a row. Its restarts continue."""
        return tuple(worker.problem for worker in self._workers.values() if worker.is_broken)

    @property
    def cause(self) -> str:
        """Why the model is broken, a sentence; empty if it is not."""
        return self._broken_workers[0].last_error if self._broken_workers else ""

    @property
    def known_info(self) -> ModelInfo | None:
        """The model's properties; None until the first worker is ready."""
        return self._info.result() if self._info.done() and not self._info.cancelled() else None

    @property
    def placements(self) -> dict[int, Placement]:
        """Where each worker that has been ready runs, by number."""
        return {number: worker.placement for number, worker in self._workers.items() if worker.placement is not None}

    @property
    def pids(self) -> tuple[int, ...]:
        """The process ids of all workers."""
        return tuple(worker.pid for worker in (*self._starting, *self._ready))

    async def info(self, *, timeout: float) -> ModelInfo:
        """Return the model's properties; wait until the first worker is ready.

        Raises:
            TimeoutError: no worker became ready in time.
            WorkersCannotStart: as `started`.
        """
        await asyncio.wait({self._info, self._started}, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
        if self._info.cancelled():
            raise WorkersCannotStart("its workers are being stopped.")
        if self._info.done():
            return self._info.result()
        if self._started.done():
            return self._started.result()
        raise TimeoutError

    async def started(self) -> ModelInfo:
        """Return the model's properties once `ready` has been true.

        Raises:
            WorkersCannotStart: all workers that encode, or all that generate, are broken.
        """
        return await asyncio.shield(self._started)

    def start(self) -> None:
        """Start all processes and the watchdog; does not wait for them to be ready."""
        for worker in self._workers.values():
            self._start_process(worker)
        self._watchdog = asyncio.create_task(self._watch())

    def retire(self) -> None:
        """Stop replacing processes that end."""
        self._is_closing = True

    async def close(self) -> None:
        """End all processes."""
        self.retire()
        if self._watchdog is not None:
            self._watchdog.cancel()
        for task in self._restarts:
            task.cancel()
        for process in self._starting:
            process.kill()  # it has no job, and reads no command before the model is loaded
        await asyncio.gather(*(process.stop() for process in (*self._starting, *self._ready)))
        self._info.cancel()
        self._started.cancel()

    # -- state transitions

    def _start_process(self, worker: ConfiguredWorker) -> None:
        worker.load_error = ""
        self._starting.add(WorkerProcess(worker.config, on_report=self._receive, on_death=self._process_died))

    def _receive(self, process: WorkerProcess, report: Report) -> None:
        match report:
            case Ready():
                self._process_ready(process, report)
            case LoadFailed():
                worker = self._workers[process.number]
                worker.load_error = report.reason
                # the cause will not go away by itself: the death that follows marks the worker as broken
                worker.num_failed_starts = max(worker.num_failed_starts, MAX_FAILED_STARTS - 1)
            case Pong():
                self._note_free_memory(process, report.free_device_bytes)
                self._metrics.show_memory(
                    process.number, resident_bytes=report.resident_bytes, device_bytes=report.device_bytes
                )
            case _:
                self._on_job_report(process, report)

    def _process_ready(self, process: WorkerProcess, report: Ready) -> None:
        info = report.info
        self._starting.discard(process)
        self._ready.add(process)
        self._sees_videos = info.inputs is not None
        worker = self._workers[process.number]
        worker.num_failed_starts = 0
        worker.placement = Placement(device=report.device, num_gpus=report.num_gpus)
        process.send(Ping())  # its reply tells how much memory is left
        if not self._info.done():
            self._info.set_result(info)
            self._metrics.show_model(info)
        if self.ready and not self._started.done():
            self._started.set_result(info)
        _log.info("worker_ready", worker=process.number, role=process.spec.role, pid=process.pid, model=info.name)
        self._on_ready(process, info)

    def _note_free_memory(self, process: WorkerProcess, free_device_bytes: int) -> None:
        worker = self._workers[process.number]
        if worker.placement is not None:
            worker.placement = replace(worker.placement, free_bytes=free_device_bytes)

    def _process_died(self, process: WorkerProcess) -> None:
        worker = self._workers[process.number]
        was_starting = process in self._starting
        self._starting.discard(process)
        if process in self._ready:
            self._ready.remove(process)
            self._metrics.show_memory(process.number, resident_bytes=0, device_bytes=0)
        if not self._is_closing:
            if was_starting:
                worker.num_failed_starts += 1
                exit_error = f"its process ended with status {process.exit_status} while it loaded the model."
                worker.last_error = encodable(worker.load_error or exit_error)
                self._report_if_unable_to_start()
            self._schedule_restart(worker, process, was_starting=was_starting)
        self._on_death(process)

    @property
    def _broken_workers(self) -> Sequence[ConfiguredWorker]:
        """All workers that encode, or else all that generate, if none of them starts; otherwise none."""
        encoders = [worker for worker in self._workers.values() if worker.config.spec.encodes]
        generators = [worker for worker in self._workers.values() if worker.config.spec.generates]
        for workers in (encoders, generators):
            if workers and all(worker.is_broken for worker in workers):
                return workers
        return ()

    def _report_if_unable_to_start(self) -> None:
        """Fail `started` if all workers that encode, or all that generate, are broken."""
        if self._broken_workers and not self._started.done():
            self._started.set_exception(WorkersCannotStart(self.cause))

    def _schedule_restart(self, worker: ConfiguredWorker, process: WorkerProcess, *, was_starting: bool) -> None:
        delay = worker.backoff
        if worker.is_broken:
            _log.error("worker_does_not_start", problem=worker.problem, next_try_in=delay)
        else:
            _log.error("worker_died", worker=process.number, pid=process.pid, while_starting=was_starting)
        self._metrics.worker_restarts.inc()
        restart = asyncio.create_task(self._restart_after(delay, worker))
        self._restarts.add(restart)
        restart.add_done_callback(self._restarts.discard)

    # -- tasks

    async def _restart_after(self, delay: float, worker: ConfiguredWorker) -> None:
        while True:
            await asyncio.sleep(delay)
            try:
                self._start_process(worker)
            except OSError:  # out of memory or process ids, which may be temporary
                _log.exception("worker_not_started")
                delay = LONGEST_BACKOFF
            else:
                return

    async def _watch(self) -> None:
        """Kill ready workers that send no reports; even a busy worker replies to `Ping`."""
        while True:
            await asyncio.sleep(self._worker_timeout / 6)
            for process in list(self._ready):
                if process.seconds_since_report > self._worker_timeout:
                    _log.error("worker_hangs", pid=process.pid, seconds=round(process.seconds_since_report))
                    process.kill()
                process.send(Ping())

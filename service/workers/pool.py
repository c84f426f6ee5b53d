"""The workers of one model: a supervisor keeps the processes running, a dispatcher sends jobs to them."""

import asyncio
from collections.abc import Sequence

from model.text.conversation import Conversation
from service.errors import InternalError, ServiceError
from service.ids import new_id
from service.observability.model_metrics import ModelMetrics
from service.workers.configured_worker import Placement
from service.workers.dispatcher import SHUTDOWN, Dispatcher
from service.workers.job import Sink
from service.workers.protocol import CheckPrompt, Encode, Encoded, Generate, ModelInfo, WorkerConfig
from service.workers.supervisor import ModelState, Supervisor


class Pool:
    """Encodes clips, checks prompts and generates answers on worker processes.

    `encode_timeout` bounds an encode, including its wait for a worker; a worker that sends no report for
    `worker_timeout` is replaced. Both are in seconds.
    """

    def __init__(
        self,
        configs: Sequence[WorkerConfig],
        *,
        encode_timeout: float,
        metrics: ModelMetrics,
        worker_timeout: float = 30.0,
    ) -> None:
        self._encode_timeout = encode_timeout
        self._dispatcher = Dispatcher(metrics=metrics)
        self._supervisor = Supervisor(
            configs,
            worker_timeout=worker_timeout,
            metrics=metrics,
            on_ready=self._dispatcher.add_worker,
            on_job_report=self._dispatcher.receive,
            on_death=self._dispatcher.remove_worker,
        )

    def __repr__(self) -> str:
        return f"Pool({self._supervisor!r}, {self._dispatcher!r})"

    @property
    def ready(self) -> bool:
        """Whether a worker that generates is ready, and one that encodes if the model sees videos."""
        return self._supervisor.ready

    @property
    def state(self) -> ModelState:
        """Whether the model can be used now, or will be soon."""
        return self._supervisor.state

    @property
    def cause(self) -> str:
        """Why the model is broken, a sentence; empty if it is not."""
        return self._supervisor.cause

    @property
    def known_info(self) -> ModelInfo | None:
        """The model's properties; None until the first worker is ready."""
        return self._supervisor.known_info

    @property
    def placements(self) -> dict[int, Placement]:
        """Where each worker that has been ready runs, by number."""
        return self._supervisor.placements

    @property
    def num_jobs(self) -> int:
        """Jobs that have not ended."""
        return self._dispatcher.num_jobs

    @property
    def problems(self) -> tuple[str, ...]:
        """A sentence for each worker that has failed to start several times in a row. Its restarts continue."""
        return self._supervisor.problems

    @property
    def pids(self) -> tuple[int, ...]:
        """The process ids of all workers."""
        return self._supervisor.pids

    async def info(self, *, timeout: float) -> ModelInfo:
        """Return the model's properties; wait up to `timeout` seconds until the first worker is ready.

        Raises:
            TimeoutError: no worker became ready in time.
            WorkersCannotStart: as `started`.
        """
        return await self._supervisor.info(timeout=timeout)

    async def started(self) -> ModelInfo:
        """Return the model's properties once `ready` has been true.

        Raises:
            WorkersCannotStart: all workers that encode, or all that generate, failed to start several times in a row.
        """
        return await self._supervisor.started()

    def start(self) -> None:
        """Start the worker processes; does not wait for them to be ready."""
        self._supervisor.start()

    def retire(self, cause: ServiceError = SHUTDOWN) -> None:
        """Refuse new jobs, as `cause` says, and stop replacing workers that end; running jobs continue."""
        self._supervisor.retire()
        self._dispatcher.retire(cause)

    async def close(self, cause: ServiceError = SHUTDOWN) -> None:
        """End all workers, and fail the jobs that have not ended with the code and message of `cause`.

        All sinks have received their ends on return.
        """
        self.retire(cause)
        await self._supervisor.close()
        self._dispatcher.close(cause)
        await asyncio.sleep(0)  # runs the sinks

    async def encode(self, command: Encode) -> Encoded:
        """Compute the features of a clip.

        Raises:
            ServiceError: the worker refused the clip, was lost, or did not finish in time.
        """
        try:
            return await asyncio.wait_for(self._dispatcher.encode(command), self._encode_timeout)
        except TimeoutError:
            raise InternalError("encode_failed", "Encoding the video took too long.") from None

    async def check(self, conversation: Conversation) -> int:
        """Count the tokens of a prompt.

        Raises:
            ServiceError: the prompt exceeds the context length, or the check failed.
        """
        checked = await self._dispatcher.check(CheckPrompt(job_id=new_id("req"), conversation=conversation))
        return checked.num_prompt_tokens

    def generate(self, command: Generate, sink: Sink) -> None:
        """Start an answer, or continue one that has output tokens.

        `sink` receives every output, in order, up to the end: a `Delta` with a `finish_reason`, or a `Refused`. It is
        called from the event loop, never within a call to the pool, and may call the pool itself. An exception that it
        raises goes to the loop's exception handler and affects no other job.

        Raises:
            ServiceError: the pool is closing; `sink` is never called.
        """
        self._dispatcher.generate(command, sink)

    def abort(self, job_id: str) -> None:
        """Abort an answer; does nothing if it has ended. The end still comes through the sink."""
        self._dispatcher.abort(job_id)

"""The part of the worker pools that answers use: start a job, abort it, and tell whether one can run."""

from collections.abc import Callable
from typing import Protocol

from service.workers.protocol import Delta, Generate, Refused


class GenerationJobs(Protocol):
    """Runs generations. The pools of workers are one."""

    def serves(self, name: str) -> bool:
        """Whether a worker of this model could take a job now."""

    def identity(self, name: str) -> str | None:
        """What generates the answers of the model of this name, as `ModelInfo.identity`; None if that is not known."""

    def generate(self, command: Generate, sink: Callable[[Delta | Refused], None], *, model: str) -> None:
        """Start a job of a model. `sink` gets its output in order, on the event loop, the ending included."""

    def abort(self, job_id: str) -> None:
        """Stop a job; its ending comes through its sink. An unknown job is ignored."""

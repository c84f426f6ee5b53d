"""One worker of the configuration, whatever process runs it now: where it runs, and how its starts went. No I/O."""

import math
from dataclasses import dataclass

from service.workers.protocol import WorkerConfig

MAX_FAILED_STARTS = 3
"""Failed starts in a row after which a worker counts as broken."""
_FIRST_BACKOFF = 0.5
LONGEST_BACKOFF = 300.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Placement:
    """The device of a worker, as the worker itself found it."""

    device: str
    """`cpu` or `cuda:N`."""
    num_gpus: int
    """GPUs of the machine that the service may use."""
    free_bytes: int | None = None
    """Free memory of its GPU at the last heartbeat; 0 on the CPU, None before the first."""


@dataclass(slots=True, eq=False)
class ConfiguredWorker:
    """One worker of the configuration, and how the starts of its processes went."""

    config: WorkerConfig
    num_failed_starts: int = 0
    """In a row."""
    load_error: str = ""
    """Why the current process cannot load the model; empty unless it has reported so."""
    last_error: str = ""
    """Why the last start failed."""
    placement: "Placement | None" = None
    """Where its last process that was ready runs."""

    @property
    def is_broken(self) -> bool:
        """Whether it failed to start several times in a row."""
        return self.num_failed_starts >= MAX_FAILED_STARTS

    @property
    def backoff(self) -> float:
        """Seconds before the next start; 0 for a worker whose last start succeeded."""
        if not self.num_failed_starts:
            return 0.0
        return min(math.ldexp(_FIRST_BACKOFF, min(self.num_failed_starts - 1, 16)), LONGEST_BACKOFF)

    @property
    def problem(self) -> str:
        """A sentence for the operator."""
        spec = self.config.spec
        which = f"Worker {self.config.number} of the model {self.config.name!r} ({spec.role}, device {spec.device})"
        return f"{which} does not start: {self.last_error}"

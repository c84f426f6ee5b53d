"""One model of a replica: what it is, its workers, and whether it can be used now."""

from collections.abc import Mapping
from dataclasses import dataclass

from service.errors import Unavailable
from service.workers.model_spec import ModelSpec
from service.workers.pool import Pool
from service.workers.protocol import ModelInfo
from service.workers.specs import WorkerSpec
from service.workers.supervisor import ModelState, WorkersCannotStart

MODEL_TIMEOUT = 30.0
"""Seconds that a request waits for a model to be loaded."""


@dataclass(slots=True, eq=False, kw_only=True)
class ServedModel:
    """One model of a replica and its workers."""

    spec: ModelSpec
    workers: Mapping[int, WorkerSpec]
    """Its workers, by their numbers in the replica."""
    pool: Pool
    is_unloading: bool = False

    @property
    def state(self) -> ModelState:
        """Whether the model can be used now, or will be soon."""
        return "unloading" if self.is_unloading else self.pool.state

    @property
    def info(self) -> ModelInfo | None:
        """The model's properties; None until its first worker is ready."""
        return self.pool.known_info

    def check_open(self) -> None:
        """Refuse work that a client asks for now, unless the model is loaded or may be loaded soon.

        Raises:
            Unavailable: the model cannot be loaded, or is being unloaded; the message says which.
        """
        match self.state:
            case "unloading":
                raise Unavailable("model_unavailable", f"The model {self.spec.name!r} is being unloaded.")
            case "broken":
                message = f"The model {self.spec.name!r} cannot be loaded: {self.pool.cause}"
                raise Unavailable("model_unavailable", message)

    async def loaded(self) -> ModelInfo:
        """Return the model's properties; wait for them for `MODEL_TIMEOUT` seconds at most.

        Raises:
            Unavailable: the model is not loaded yet, or cannot be loaded; the message says which.
        """
        try:
            return await self.pool.info(timeout=MODEL_TIMEOUT)
        except TimeoutError:
            message = f"The model {self.spec.name!r} is not loaded yet; try again in a moment."
            raise Unavailable("model_unavailable", message) from None
        except WorkersCannotStart as error:
            message = f"The model {self.spec.name!r} cannot be loaded: {error}"
            raise Unavailable("model_unavailable", message) from None

"""Loads and unloads models while the service runs, for its operator."""

import asyncio
import time

import structlog

from service.answers.runner import AnswerRunner
from service.errors import Conflict, InvalidRequest, Unavailable
from service.settings import Settings
from service.workers.memory_check import MemoryCheck
from service.workers.model_spec import ModelOptions, ModelSpec
from service.workers.pools import Pools
from service.workers.served_model import ServedModel
from service.workers.specs import MAX_WORKERS

_log = structlog.get_logger(__name__)

_POLL = 0.1  # seconds between two looks at the jobs of a model that is being unloaded


class ModelLoading:
    """The models that come and go at one replica.

    `grace` is how many seconds the running answers of a model may continue while it is being unloaded.
    """

    def __init__(self, settings: Settings, *, pools: Pools, runner: AnswerRunner, grace: float) -> None:
        self._settings = settings
        self._pools = pools
        self._runner = runner
        self._grace = grace
        self._memory_check = MemoryCheck(pools)
        self._unloads: set[asyncio.Task[None]] = set()
        self._is_closed = False

    async def load(self, name: str, options: ModelOptions) -> ServedModel:
        """Start the workers of one more model; does not wait until they have loaded it.

        Raises:
            Conflict: a model has this name.
            InsufficientMemory: the model does not fit into the free memory of its devices.
            InvalidRequest: the checkpoint cannot be read, or there would be too many workers.
            Unavailable: no worker is ready yet, so that the free memory is not known, the checkpoint's files cannot be
                read in time, or the replica is stopping.
        """
        try:
            spec = self._settings.model_defaults.complete(name, options)
        except ValueError as error:
            raise InvalidRequest("invalid_value", f"{error}.", param="workers") from None
        self._check_room(spec)
        await self._memory_check.check(spec)
        self._check_room(spec)  # another model may have come meanwhile
        return self._pools.load(spec)

    def _check_room(self, spec: ModelSpec) -> None:
        if self._is_closed:
            raise Unavailable("draining", "This replica is stopping; it loads no model.")
        name = spec.name
        if name in self._pools:
            raise Conflict("model_exists", f"There is a model {name!r}; unload it first.", param="name")
        if len(self._pools.workers) + len(spec.workers) > MAX_WORKERS:
            message = f"All models together may have at most {MAX_WORKERS} workers."
            raise InvalidRequest("invalid_value", message, param="workers")

    def unload(self, name: str) -> ServedModel:
        """Begin to unload a model; it takes no new work from now on. Its features stay in the cache.

        Its running answers may continue for the grace period. After that other replicas that serve the model continue
        them, or this one, once it has loaded the model again.

        Raises:
            NotFound: no model has this name.
            Conflict: it is the default model.
        """
        model = self._pools.get(name)
        if name == self._pools.default:
            raise Conflict("default_model", "The default model cannot be unloaded.", param="name")
        if not model.is_unloading:
            model.is_unloading = True
            task = asyncio.create_task(self._unload(model), name=f"unload {name}")
            self._unloads.add(task)
            task.add_done_callback(self._unloads.discard)
        return model

    async def _unload(self, model: ServedModel) -> None:
        name, give_up = model.spec.name, time.monotonic() + self._grace
        _log.info("model_unloading", model=name, num_jobs=model.pool.num_jobs)
        while (self._runner.num_answers_of(name) or model.pool.num_jobs) and time.monotonic() < give_up:  # noqa: ASYNC110
            await asyncio.sleep(_POLL)
        await self._runner.hand_over(model=name)
        await self._pools.unload(name)

    async def close(self) -> None:
        """Load no more models, and stop waiting for answers of those that are being unloaded.

        The pools end all workers.
        """
        self._is_closed = True
        for task in self._unloads:
            task.cancel()
        await asyncio.gather(*self._unloads, return_exceptions=True)

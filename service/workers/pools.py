"""The models of a replica: a pool of workers for each, which can be loaded and unloaded at run time."""

import asyncio
import itertools
from collections.abc import Iterator, Mapping
from dataclasses import replace

import structlog

from model.text.conversation import Conversation
from service.errors import NotFound, Unavailable
from service.observability.metrics import Metrics
from service.settings import Settings
from service.workers.job import Sink
from service.workers.model_spec import ModelSpec
from service.workers.pool import Pool
from service.workers.protocol import Encode, Encoded, Generate, ModelInfo, WorkerConfig
from service.workers.served_model import ServedModel
from service.workers.specs import WorkerSpec

_log = structlog.get_logger(__name__)


class Pools:
    """The models of one replica by name, each with a pool of its own.

    No two workers of a replica have the same number, whatever their model.
    """

    def __init__(self, settings: Settings, *, metrics: Metrics) -> None:
        self._settings = settings
        self._metrics = metrics
        self._models: dict[str, ServedModel] = {}
        self.default = next(spec.name for spec in settings.model_specs if spec.is_default)
        """The name of the model that answers requests without one."""
        numbers = itertools.count()
        workers = {spec.name: {next(numbers): worker for worker in spec.workers} for spec in settings.model_specs}
        all_workers = {number: worker for group in workers.values() for number, worker in group.items()}
        for spec in settings.model_specs:
            self._add(spec, workers[spec.name], all_workers)

    def __repr__(self) -> str:
        return f"Pools({', '.join(f'{name}={model.pool!r}' for name, model in self._models.items())})"

    def __iter__(self) -> Iterator[ServedModel]:
        return iter(tuple(self._models.values()))

    def __contains__(self, name: str) -> bool:
        return name in self._models

    def get(self, name: str | None) -> ServedModel:
        """Return a model; None stands for the default one.

        Raises:
            NotFound: no model has this name; the message lists the names.
        """
        model = self._models.get(self.default if name is None else name)
        if model is None:
            known = ", ".join(map(repr, self._models))
            raise NotFound("model_not_found", f"This server serves no model {name!r}; it has {known}.", param="model")
        return model

    async def info(self, name: str | None) -> ModelInfo:
        """Return a model's properties; wait until it is loaded.

        Raises:
            NotFound: no model has this name.
            Unavailable: the model is not loaded yet, or cannot be loaded.
        """
        return await self.get(name).loaded()

    # -- the state of the replica

    @property
    def ready(self) -> bool:
        """Whether the default model can encode a video and answer a question now."""
        return self.get(None).pool.ready

    def serves(self, name: str) -> bool:
        """Whether a worker of this model could take an answer now."""
        model = self._models.get(name)
        return model is not None and model.state == "ready"

    def identity(self, name: str) -> str | None:
        """What generates the answers of the model of this name; None if no model here has it, or it is not loaded."""
        info = self._models[name].info if name in self else None
        return None if info is None else info.identity

    @property
    def problems(self) -> tuple[str, ...]:
        """A sentence for each worker, of any model, that has failed to start several times in a row."""
        return tuple(problem for model in self for problem in model.pool.problems)

    @property
    def workers(self) -> dict[int, WorkerSpec]:
        """All workers by number, each with the device that it runs on, if it has been ready."""
        placed = {number: place.device for model in self for number, place in model.pool.placements.items()}
        all_workers = {number: worker for model in self for number, worker in model.workers.items()}
        return {
            number: replace(worker, device=placed.get(number, worker.device)) for number, worker in all_workers.items()
        }

    async def started(self) -> ModelInfo:
        """Return the default model's properties once it is ready.

        Raises:
            WorkersCannotStart: it cannot be loaded.
        """
        return await self.get(None).pool.started()

    def start(self) -> None:
        """Start the workers of all models; does not wait for them to be ready."""
        for model in self:
            model.pool.start()

    def retire(self) -> None:
        """Refuse new jobs and stop replacing workers that end; running jobs continue."""
        for model in self:
            model.pool.retire()

    async def close(self) -> None:
        """End all workers and fail the jobs that have not ended."""
        self.retire()
        await asyncio.gather(*(model.pool.close() for model in self))

    # -- loading and unloading

    def load(self, spec: ModelSpec) -> ServedModel:
        """Start the workers of one more model; does not wait for them to be ready."""
        assert spec.name not in self, "the caller has checked the name"
        workers = self.numbered(spec)
        model = self._add(spec, workers, self.workers | workers)
        model.pool.start()
        _log.info("model_loading", model=spec.name, family=spec.family, workers=sorted(model.workers))
        return model

    def numbered(self, spec: ModelSpec) -> dict[int, WorkerSpec]:
        """Give each worker of a new model the lowest number that no other worker has."""
        taken = self.workers.keys()
        free = (number for number in itertools.count() if number not in taken)
        return {next(free): worker for worker in spec.workers}

    async def unload(self, name: str) -> None:
        """End a model's workers, fail its jobs that have not ended, and forget it."""
        model = self.get(name)
        model.is_unloading = True
        await model.pool.close(_unloaded(name))
        self._models.pop(name, None)
        self._metrics.by_model.forget(name)
        _log.info("model_unloaded", model=name)

    def _add(
        self, spec: ModelSpec, workers: Mapping[int, WorkerSpec], all_workers: Mapping[int, WorkerSpec]
    ) -> ServedModel:
        self._metrics.by_model.remember(spec.name)
        pool = Pool(
            [_worker_config(self._settings, spec, number, all_workers) for number in workers],
            encode_timeout=self._settings.encode_timeout,
            worker_timeout=self._settings.worker_timeout,
            metrics=self._metrics.of_model(spec.name),
        )
        model = self._models[spec.name] = ServedModel(spec=spec, workers=workers, pool=pool)
        return model

    # -- jobs

    async def encode(self, command: Encode, *, model: str) -> Encoded:
        """Compute the features of a clip.

        Raises:
            ServiceError: the model was unloaded, or the worker refused the clip, was lost, or did not finish in time.
        """
        return await self._pool(model).encode(command)

    async def check(self, conversation: Conversation, *, model: str) -> int:
        """Count the tokens of a prompt.

        Raises:
            ServiceError: the model was unloaded, or the prompt exceeds the context length, or the check failed.
        """
        return await self._pool(model).check(conversation)

    def generate(self, command: Generate, sink: Sink, *, model: str) -> None:
        """Start an answer, as `Pool.generate` does.

        Raises:
            Unavailable: the model was unloaded; `sink` is never called.
            InternalError: the service is shutting down; `sink` is never called.
        """
        self._pool(model).generate(command, sink)

    def _pool(self, name: str) -> Pool:
        if name not in self:
            raise _unloaded(name)
        return self._models[name].pool

    def abort(self, job_id: str) -> None:
        """Abort an answer of any model; does nothing if it has ended. The end still comes through its sink."""
        for model in self:
            model.pool.abort(job_id)


def _unloaded(name: str) -> Unavailable:
    return Unavailable("model_unavailable", f"The model {name!r} was unloaded.")


def _worker_config(
    settings: Settings, spec: ModelSpec, number: int, all_workers: Mapping[int, WorkerSpec]
) -> WorkerConfig:
    return WorkerConfig(
        name=spec.name,
        family=spec.family,
        checkpoint=None if spec.checkpoint is None else str(spec.checkpoint),
        workers=all_workers,
        number=number,
        dtype=spec.dtype,
        quantization=spec.quantization,
        threads=settings.threads_for(len(all_workers)),
        max_num_seqs=spec.max_num_seqs,
        max_num_batched_tokens=settings.max_num_batched_tokens,
        cuda_graphs=settings.cuda_graphs,
        max_num_batched_frames=settings.max_num_batched_frames,
        log_level=settings.log_level,
        log_format=settings.log_format,
    )

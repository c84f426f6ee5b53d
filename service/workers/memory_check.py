"""Whether one more model fits into the memory of the devices that its workers run on. No torch."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from model.footprint import Footprint, UnreadableCheckpoint
from model.free_memory import free_main_memory
from service.errors import InsufficientMemory, InvalidRequest, Unavailable
from service.workers.configured_worker import Placement
from service.workers.model_spec import ModelSpec
from service.workers.pools import Pools
from service.workers.size_reader import LoadedForm, SizeReader
from service.workers.specs import WorkerSpec, assign_devices

_CPU = "cpu"
_PROCESS_BYTES = 400 << 20
"""Main memory of a worker process without its model: Python, torch and transformers."""
_GIB = 1 << 30
_VALUE_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}


class MemoryCheck:
    """Whether one more model fits beside the loaded models of a replica and those that are being loaded."""

    def __init__(self, pools: Pools, *, reader: SizeReader | None = None) -> None:
        self._pools = pools
        self._reader = reader or SizeReader()

    async def check(self, spec: ModelSpec) -> None:
        """Refuse a model that does not fit. The result holds until the next `await` of the caller.

        A GPU on which no worker has been ready is not checked: the service does not know its memory before. A model
        that is being loaded and whose checkpoint cannot be read counts as its processes alone.

        Raises:
            InsufficientMemory: processes, weights, and keys and values of one sequence take more than what is free.
            InvalidRequest: the checkpoint has no weights that can be read.
            Unavailable: no worker is ready, so that the devices are not known yet, or files cannot be read in time.
        """
        sizes: dict[LoadedForm, Footprint | UnreadableCheckpoint] = {}
        while True:
            planned = self._planned(spec)
            missing = {form for worker in planned if (form := worker.form) is not None} - sizes.keys()
            if not missing:
                break
            for form in missing:
                sizes[form] = await self._reader.read(form)
                if isinstance(unreadable := sizes[form], UnreadableCheckpoint) and form.folder == spec.checkpoint:
                    raise InvalidRequest("invalid_value", str(unreadable), param="checkpoint")
        needed: Counter[str] = Counter()
        for worker in planned:
            needed[_CPU] += _PROCESS_BYTES
            size = None if worker.form is None else sizes[worker.form]
            if isinstance(size, Footprint):
                needed[worker.device] += size.weight_bytes + (size.kv_bytes if worker.generates else 0)
        free = _free_bytes(self._placements)
        for device, num_bytes in needed.items():
            if device in free and num_bytes > free[device]:
                raise InsufficientMemory(
                    "insufficient_memory",
                    f"The model {spec.name!r} does not fit on the device {device}: "
                    f"about {num_bytes / _GIB:.2f} GiB are needed, and {free[device] / _GIB:.2f} GiB are free.",
                )

    @property
    def _placements(self) -> list[Placement]:
        return [placement for model in self._pools for placement in model.pool.placements.values()]

    def _planned(self, spec: ModelSpec) -> list["_PlannedWorker"]:
        """The workers of a new model and of those that are being loaded, with their devices."""
        placements = self._placements
        if not placements:
            raise Unavailable("model_unavailable", "No worker is ready yet, so the free memory is not known.")
        new = self._pools.numbered(spec)
        assigned = assign_devices(self._pools.workers | new, num_gpus=placements[0].num_gpus)
        loading = [model for model in self._pools if model.state == "loading"]
        return [
            _PlannedWorker.of(owner, assigned[number])
            for owner, numbers in [(spec, new), *((model.spec, model.workers) for model in loading)]
            for number in numbers
        ]


@dataclass(frozen=True, kw_only=True, slots=True)
class _PlannedWorker:
    """A worker that takes memory which is still free."""

    device: str
    generates: bool
    form: LoadedForm | None
    """What it loads; None for the small models, which take a few megabytes."""

    @classmethod
    def of(cls, spec: ModelSpec, worker: WorkerSpec) -> "_PlannedWorker":
        """Return a worker of a model, on the device that it is assigned to."""
        is_on_cpu = worker.device == _CPU
        value_bytes = _VALUE_BYTES.get(spec.dtype, 4 if is_on_cpu else 2)
        form = None
        if spec.checkpoint is not None:
            form = LoadedForm(
                folder=spec.checkpoint,
                value_bytes=value_bytes,
                kv_value_bytes=4 if is_on_cpu else value_bytes,
                quantization=spec.quantization,
            )
        return cls(device=worker.device, generates=worker.generates, form=form)


def _free_bytes(placements: Sequence[Placement]) -> dict[str, float]:
    """The free memory of each device that is known."""
    free = {_CPU: free_main_memory()}
    for place in placements:
        if place.device != _CPU and place.free_bytes is not None:
            free[place.device] = min(place.free_bytes, free.get(place.device, place.free_bytes))
    return free

"""Whether one more model fits into the memory of the devices that its workers run on. No torch."""

from collections import Counter
from collections.abc import Sequence

from model.footprint import UnreadableCheckpoint, checkpoint_footprint
from model.free_memory import free_main_memory
from service.errors import InsufficientMemory, InvalidRequest, Unavailable
from service.workers.configured_worker import Placement
from service.workers.model_spec import ModelSpec
from service.workers.pools import Pools
from service.workers.specs import WorkerSpec, assign_devices

_CPU = "cpu"
_PROCESS_BYTES = 400 << 20
"""Main memory of a worker process without its model: Python, torch and transformers."""
_GIB = 1 << 30
_VALUE_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}


def check_memory(spec: ModelSpec, pools: Pools) -> None:
    """Refuse a model that does not fit beside the loaded models and those that are being loaded.

    A GPU on which no worker has been ready is not checked: the service does not know its memory before.

    Raises:
        InsufficientMemory: processes, weights, and keys and values of one sequence take more than what is free.
        InvalidRequest: the checkpoint has no weights that can be read.
        Unavailable: no worker is ready, so that the devices are not known yet.
    """
    placements = [placement for model in pools for placement in model.pool.placements.values()]
    if not placements:
        raise Unavailable("model_unavailable", "No worker is ready yet, so the free memory is not known.")
    new = pools.numbered(spec)
    assigned = assign_devices(pools.workers | new, num_gpus=placements[0].num_gpus)
    needed = _needed(spec, [assigned[number] for number in new])
    for model in pools:
        if model.state == "loading":
            needed += _needed(model.spec, [assigned[number] for number in model.workers])
    free = _free_bytes(placements)
    for device, num_bytes in needed.items():
        if device in free and num_bytes > free[device]:
            raise InsufficientMemory(
                "insufficient_memory",
                f"The model {spec.name!r} does not fit on the device {device}: "
                f"about {num_bytes / _GIB:.2f} GiB are needed, and {free[device] / _GIB:.2f} GiB are free.",
            )


def _needed(spec: ModelSpec, workers: Sequence[WorkerSpec]) -> Counter[str]:
    """The bytes that a model's workers take, by device."""
    needed: Counter[str] = Counter()
    for worker in workers:
        is_on_cpu = worker.device == _CPU
        needed[_CPU] += _PROCESS_BYTES
        if spec.checkpoint is None:  # the small models take a few megabytes
            continue
        value_bytes = _VALUE_BYTES.get(spec.dtype, 4 if is_on_cpu else 2)
        try:
            footprint = checkpoint_footprint(
                spec.checkpoint,
                value_bytes=value_bytes,
                kv_value_bytes=4 if is_on_cpu else value_bytes,
                quantization=spec.quantization,
            )
        except UnreadableCheckpoint as error:
            raise InvalidRequest("invalid_value", str(error), param="checkpoint") from None
        needed[worker.device] += footprint.weight_bytes + (footprint.kv_bytes if worker.generates else 0)
    return needed


def _free_bytes(placements: Sequence[Placement]) -> dict[str, float]:
    """The free memory of each device that is known."""
    free = {_CPU: free_main_memory()}
    for place in placements:
        if place.device != _CPU and place.free_bytes is not None:
            free[place.device] = min(place.free_bytes, free.get(place.device, place.free_bytes))
    return free

"""The workers of a replica: the role and device of each, and its share of the device. No torch."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import get_args

from model.role import Role

MAX_WORKERS = 64
_ENCODER_WEIGHT = 0.25
"""Weight of an encode worker when workers share a device; a worker that generates weighs 1. An encoder's weights are a
fraction of a language model's, and it has no KV cache."""
_ENTRY = re.compile(r"(?P<role>[a-z]+)(?:\*(?P<count>\d{1,3}))?(?:@(?P<device>auto|cpu|cuda(?::\d{1,3})?))?")


@dataclass(frozen=True, kw_only=True, slots=True)
class WorkerSpec:
    """The role of one worker and the device it runs on: `auto`, `cpu`, `cuda` or `cuda:N`."""

    role: Role
    device: str

    @property
    def encodes(self) -> bool:
        """Whether the worker encodes clips."""
        return self.role != "generate"

    @property
    def generates(self) -> bool:
        """Whether the worker generates answers."""
        return self.role != "encode"


def parse_workers(text: str, *, device: str, has_encoder: bool = True) -> tuple[WorkerSpec, ...]:
    """Parse the value of `REELTALK_WORKERS`.

    Examples: `2`, `encode,generate*2`, `encode@cpu,generate@cuda:0,generate@cuda:1`. A number stands for that many
    workers with the role `all`. Entries without a device get `device`. A model that sees no videos has no encoder, and
    needs workers that generate only.

    Raises:
        ValueError: the text is malformed, there are too many workers or none, or no worker encodes, or none
            generates, or one has nothing to do.
    """
    text = text.replace(" ", "")
    specs: list[WorkerSpec] = []
    for entry in (f"all*{text}" if text.isdecimal() else text).split(","):
        found = _ENTRY.fullmatch(entry)
        if found is None or (role := _role(found["role"])) is None:
            raise ValueError(
                f"{entry!r} does not describe a worker; write a number, or roles ({', '.join(get_args(Role))}) such as "
                "encode,generate*2 or encode@cpu,generate@cuda:0"
            )
        specs += [WorkerSpec(role=role, device=found["device"] or device)] * int(found["count"] or 1)
    if len(specs) > MAX_WORKERS:
        raise ValueError(f"there may be at most {MAX_WORKERS} workers")
    if not specs:
        raise ValueError("at least one worker is needed; write a number, or roles such as encode,generate*2")
    if has_encoder and not any(spec.encodes for spec in specs):
        raise ValueError("no worker encodes videos; add one with the role encode or all")
    if not has_encoder and any(not spec.generates for spec in specs):
        raise ValueError("a worker has the role encode, but the model sees no videos; use the role generate or all")
    if not any(spec.generates for spec in specs):
        raise ValueError("no worker answers questions; add one with the role generate or all")
    return tuple(specs)


def _role(text: str) -> Role | None:
    return next((role for role in get_args(Role) if role == text), None)


def assign_devices(specs: Mapping[int, WorkerSpec], *, num_gpus: int) -> dict[int, WorkerSpec]:
    """Replace `auto` and `cuda` by the name of one device, for all workers of a replica by number.

    Both take the GPUs in turn. Without a GPU, `auto` becomes `cpu` and `cuda` becomes `cuda:0`, which `check_device`
    refuses.
    """
    num_assigned = 0
    assigned = {}
    for number, spec in specs.items():
        device = spec.device
        if device == "cuda" or (device == "auto" and num_gpus):
            device = f"cuda:{num_assigned % max(1, num_gpus)}"
            num_assigned += 1
        assigned[number] = replace(spec, device="cpu" if device == "auto" else device)
    return assigned


def check_device(spec: WorkerSpec, *, num_gpus: int) -> None:
    """Check that the assigned device exists.

    Raises:
        ValueError: it is a GPU that this machine does not have.
    """
    if spec.device.startswith("cuda") and int(spec.device.removeprefix("cuda:")) >= num_gpus:
        raise ValueError(f"The worker is configured for {spec.device}, but torch finds {num_gpus} GPUs.")


def device_share(specs: Mapping[int, WorkerSpec], number: int) -> float:
    """The share of its device's memory that worker `number` may use, up to 1.

    `specs` are all workers of the replica, whatever their model, with assigned devices.
    """
    weights = [_weight(spec) for spec in specs.values() if spec.device == specs[number].device]
    return _weight(specs[number]) / sum(weights)


def _weight(spec: WorkerSpec) -> float:
    return 1.0 if spec.generates else _ENCODER_WEIGHT

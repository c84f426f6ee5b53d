"""Which workers a replica has: what each is for, on which device, and what of the device it may take. No torch."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from model.role import Role

Quantization = Literal["int8", "int4"]
"""As `model.quantization.Quantization`, which this side of the pipe cannot import."""

MAX_WORKERS = 64
_ENCODER_SHARE = 0.25
"""Of a device, beside 1 for a worker that answers: an encoder's weights are a fraction of a language model's, and it
keeps no keys and values."""
_ENTRY = re.compile(r"(?P<role>[a-z]+)(?:\*(?P<count>\d{1,3}))?(?:@(?P<device>auto|cpu|cuda(?::\d{1,3})?))?")


@dataclass(frozen=True, kw_only=True, slots=True)
class Place:
    """One worker to be: its role, and the device it shall run on, `auto`, `cpu`, `cuda` or `cuda:N`."""

    role: Role
    device: str

    @property
    def encodes(self) -> bool:
        """Whether it takes clips."""
        return self.role != "generate"

    @property
    def generates(self) -> bool:
        """Whether it takes questions."""
        return self.role != "encode"


def parse_places(text: str, *, device: str) -> tuple[Place, ...]:
    """What `REELTALK_WORKERS` says: `2`, or `encode,generate*2`, or `encode@cpu,generate@cuda:0,generate@cuda:1`.

    A number is so many workers that do everything. `device` is for those that name none.

    Raises:
        ValueError: it says something else, or nobody would encode, or nobody would answer.
    """
    text = text.replace(" ", "")
    places: list[Place] = []
    for entry in (f"all*{text}" if text.isdecimal() else text).split(","):
        found = _ENTRY.fullmatch(entry)
        if found is None or (role := _role(found["role"])) is None:
            raise ValueError(
                f"{entry!r} is no worker; write a number, or roles ({', '.join(get_args(Role))}) such as "
                "encode,generate*2 or encode@cpu,generate@cuda:0"
            )
        places += [Place(role=role, device=found["device"] or device)] * int(found["count"] or 1)
    if len(places) > MAX_WORKERS:
        raise ValueError(f"there may be at most {MAX_WORKERS} workers")
    if not any(place.encodes for place in places):
        raise ValueError("no worker would encode videos; add one of the role encode or all")
    if not any(place.generates for place in places):
        raise ValueError("no worker would answer questions; add one of the role generate or all")
    return tuple(places)


def _role(text: str) -> Role | None:
    return next((role for role in get_args(Role) if role == text), None)


def resolve(places: Sequence[Place], *, num_gpus: int) -> tuple[Place, ...]:
    """The same workers on devices by their full names; `auto` and `cuda` take the GPUs in turn, `auto` else the CPU."""
    turn = 0
    resolved = []
    for place in places:
        device = place.device
        if device == "cuda" or (device == "auto" and num_gpus):
            device = f"cuda:{turn % max(1, num_gpus)}"
            turn += 1
        resolved.append(Place(role=place.role, device="cpu" if device == "auto" else device))
    return tuple(resolved)


def check_device(place: Place, *, num_gpus: int) -> None:
    """Refuse a resolved place on a GPU that is not there.

    Raises:
        ValueError: it is not.
    """
    if place.device.startswith("cuda") and int(place.device.removeprefix("cuda:")) >= num_gpus:
        raise ValueError(f"It is to run on {place.device}, but torch finds {num_gpus} GPUs here.")


def share(places: Sequence[Place], number: int) -> float:
    """What worker `number` may take of its device, of 1, where the other `places` are resolved too."""
    weights = [1.0 if place.generates else _ENCODER_SHARE for place in places if place.device == places[number].device]
    return (1.0 if places[number].generates else _ENCODER_SHARE) / sum(weights)

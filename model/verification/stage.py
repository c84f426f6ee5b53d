"""The findings of a verification: tensors under the names of the reference, other values, and what is left out."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True, slots=True)
class Stage:
    """One tensor that a model computed; the reference tensor has the same name and shape."""

    name: str
    tensor: Tensor
    follows: str | None = None
    """The earlier stage with the token ids: row i can be compared only if the first i ids equal the reference's."""
    tolerance: float = 0.0
    """Tolerated difference, relative to the largest expected value, where it is larger than that of the dtype."""
    is_choice: bool = False
    """Rounding may change it (token ids, the tokens within top_p): must be equal in float32, only shown in 16 bits."""
    is_of_language_model: bool = False
    """Whether the layers of the language model computed it, whose weights may be quantised."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Claim:
    """A value other than a tensor; `expected` is None if the folder does not have it."""

    name: str
    got: object
    expected: object
    is_choice: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Omission:
    """A stage that cannot be computed because the folder lacks weights that serving does not need."""

    name: str
    reason: str


Finding = Stage | Claim | Omission


@contextmanager
def recorded(modules: Mapping[str, nn.Module]) -> Iterator[dict[str, Tensor]]:
    """Record the output of each module's last forward pass within the block, by the given names."""
    outputs: dict[str, Tensor] = {}

    def keep(name: str, output: object) -> None:
        first = output[0] if isinstance(output, tuple) else output
        assert isinstance(first, torch.Tensor), f"{name} returns no tensor"
        outputs[name] = first

    handles = [
        module.register_forward_hook(lambda _, __, output, name=name: keep(name, output))
        for name, module in modules.items()
    ]
    try:
        yield outputs
    finally:
        for handle in handles:
            handle.remove()

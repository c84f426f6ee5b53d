"""What a family's verification yields: tensors under the names of its reference, and claims beside them."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True, slots=True)
class Stage:
    """One tensor that a model computed; its reference has the same name and shape."""

    name: str
    tensor: Tensor
    follows: str | None = None
    """Token ids, a stage before this one: row i holds only while the first i of them are the reference's."""
    is_choice: bool = False
    """The last bit may decide (token ids, what top_p leaves): equal in float32, merely shown in fewer bits."""
    is_said: bool = False
    """The layers of the language model computed it, of which the weights may be quantised."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Claim:
    """Something other than a tensor; `expected` is None where the folder says nothing of it."""

    name: str
    got: object
    expected: object
    is_choice: bool = False


Finding = Stage | Claim


@contextmanager
def recorded(modules: Mapping[str, nn.Module]) -> Iterator[dict[str, Tensor]]:
    """What each module gives in its last forward pass within, by the names given here."""
    outputs: dict[str, Tensor] = {}

    def keep(name: str, output: object) -> None:
        first = output[0] if isinstance(output, tuple) else output
        assert isinstance(first, torch.Tensor), f"{name} gives no tensor"
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

"""The bases of every family's network: sizes that survive JSON, the language model, the steps from frames to rows."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, is_dataclass
from types import NoneType, UnionType
from typing import Any, ClassVar, Self, TypeVar, get_args, get_type_hints

import torch
from torch import Tensor, nn
from transformers import LlamaForCausalLM

from model.features import PartSpec
from model.networks.llama import DecoderConfig, restore_rotary
from model.networks.sizes import check_sizes
from model.role import Role


@dataclass(frozen=True, kw_only=True, slots=True)
class NetworkConfig:
    """Every size of a network; the sizes of its modules are dataclasses of their own.

    Raises:
        ValueError: a size is impossible.
    """

    decoder: DecoderConfig

    def __post_init__(self) -> None:
        check_sizes(self)

    @property
    def parts(self) -> tuple[PartSpec, ...]:
        """The parts of one clip's features; none for a language model alone."""
        return ()

    @property
    def condition_shapes(self) -> Mapping[str, tuple[int, ...]]:
        """The tensors of a sequence's condition (`model.engine.sequence.Condition`); none for most models."""
        return {}

    def num_rows(self, part: PartSpec) -> int:
        """Return the positions of a part in a prompt; 0 for one that only conditions see."""
        return part.shape[0]

    def to_json(self) -> dict[str, Any]:
        """Return the sizes as nested plain values; `from_json` reads them back."""
        return asdict(self)

    @classmethod
    def from_json(cls, sizes: Mapping[str, Any]) -> Self:
        """Read sizes that `to_json` wrote.

        Raises:
            KeyError, TypeError: a size is missing or unknown.
            ValueError: a size is impossible.
        """
        kinds = {name: _without_none(kind) for name, kind in get_type_hints(cls).items()}
        parts = {
            name: kind(**sizes[name])
            for name, kind in kinds.items()
            if isinstance(kind, type) and is_dataclass(kind) and sizes.get(name, {}) is not None
        }
        lists = {name: tuple(value) for name, value in sizes.items() if isinstance(value, list)}
        return cls(**{**sizes, **parts, **lists})


def _without_none(kind: Any) -> Any:
    """Return the type of an optional field."""
    some = [each for each in get_args(kind) if each is not NoneType]
    return some[0] if isinstance(kind, UnionType) and len(some) == 1 else kind


ConfigT = TypeVar("ConfigT", bound=NetworkConfig)


class Network(nn.Module, ABC):
    """All modules of one model. All parameters have one dtype and one device.

    Where a process needs only one role, the parameters of the other role stay on the meta device and take no memory.
    """

    config: NetworkConfig
    encoding: ClassVar[frozenset[str]] = frozenset()
    """Attributes that `encode` uses: modules and parameters. All others belong to `project` and the decoder."""

    @property
    @abstractmethod
    def decoder(self) -> LlamaForCausalLM:
        """The language model."""

    def restore_buffers(self) -> None:
        """Compute the buffers that no checkpoint holds; a network built on the meta device lacks them."""
        restore_rotary(self.decoder)

    def merge(self) -> None:
        """Merge parameters that a checkpoint holds apart, such as low-rank updates; called once, after loading."""

    def serves(self, name: str, role: Role) -> bool:
        """Return whether a role needs the parameter, buffer or module of this name."""
        return role == "all" or (name.partition(".")[0] in self.encoding) == (role == "encode")

    def move_to(self, device: torch.device | str, *, role: Role) -> None:
        """Move the modules and parameters that a role needs."""
        for name, module in self.named_children():
            if self.serves(name, role):
                module.to(device)
        for name, parameter in self.named_parameters(recurse=False):
            if self.serves(name, role):
                parameter.data = parameter.data.to(device)


class VideoNetwork(Network):
    """A network that sees clips: an encoder, whose features can be cached, and a projection into the prompt."""

    @abstractmethod
    def encode(self, pixel_values: Tensor) -> dict[str, Tensor]:
        """Encode normalised frames [B, T, 3, H, W] into unprojected features: by part, [B, rows, width]."""

    @abstractmethod
    def project(self, part: str, features: Tensor) -> Tensor:
        """Project the features of a part, [..., rows, width], to rows of the prompt, [..., rows, hidden]."""

    def condition(self, clips: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor] | None:  # noqa: ARG002
        """Compute what the layers use at every token from the parts of each clip of a conversation, [rows, width].

        Returns:
            The tensors of `NetworkConfig.condition_shapes`; None for a model, or a conversation, without them.
        """
        return None


class SoundNetwork(VideoNetwork):
    """A network that sees and hears clips. The part of the features that is computed from sound is optional."""

    @abstractmethod
    def encode(self, pixel_values: Tensor, mel: Tensor | None = None) -> dict[str, Tensor]:
        """Encode as `VideoNetwork.encode`, with mel spectrograms [B, count, 1, bins, steps] of clips with sound."""


NetworkT = TypeVar("NetworkT", bound=Network)

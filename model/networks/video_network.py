"""What the network of every family has: sizes that survive JSON, and the way from frames to what LLaMA is told."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import asdict, dataclass, is_dataclass
from typing import Any, ClassVar, Self, TypeVar, get_type_hints

import torch
from torch import Tensor, nn
from transformers import LlamaForCausalLM

from model.networks.llama import DecoderConfig, restore_rotary
from model.role import Role


@dataclass(frozen=True, kw_only=True, slots=True)
class VideoNetworkConfig(ABC):
    """Every size of a network; those of its parts are records of their own."""

    decoder: DecoderConfig

    @property
    @abstractmethod
    def feature_shape(self) -> tuple[int, int]:
        """[tokens, width] of one clip's features, however many frames it has."""

    def to_json(self) -> dict[str, Any]:
        """The sizes as nested plain values; `from_json` reads them back."""
        return asdict(self)

    @classmethod
    def from_json(cls, sizes: Mapping[str, Any]) -> Self:
        """Sizes as `to_json` wrote them.

        Raises:
            KeyError, TypeError: a size is missing or unknown.
        """
        kinds: dict[str, Any] = get_type_hints(cls)
        parts = {
            name: kind(**sizes[name]) for name, kind in kinds.items() if isinstance(kind, type) and is_dataclass(kind)
        }
        lists = {name: tuple(value) for name, value in sizes.items() if isinstance(value, list)}
        return cls(**{**sizes, **parts, **lists})


ConfigT = TypeVar("ConfigT", bound=VideoNetworkConfig)


class VideoNetwork(nn.Module, ABC):
    """All modules of one model: tensors in, tensors out. Every parameter is in one dtype and on one device.

    Where only one role is wanted, the parameters of the other stay on the meta device, where they take no memory.
    """

    config: VideoNetworkConfig
    encoding: ClassVar[frozenset[str]]
    """What `encode` uses, by attribute: modules and parameters. Everything else is for `project` and the decoder."""

    @property
    @abstractmethod
    def decoder(self) -> LlamaForCausalLM:
        """The language model."""

    @abstractmethod
    def encode(self, pixel_values: Tensor) -> Tensor:
        """Frames [B, T, 3, H, W], normalised, to features [B, *feature_shape], not projected yet; T from 1 to 100."""

    @abstractmethod
    def project(self, features: Tensor) -> Tensor:
        """Features [..., width] to video tokens [..., hidden]."""

    def restore_buffers(self) -> None:
        """Compute anew what no checkpoint holds, and a network built on the meta device therefore lacks."""
        restore_rotary(self.decoder)

    def serves(self, name: str, role: Role) -> bool:
        """Whether a role needs the parameter, buffer or module of this name."""
        return role == "all" or (name.partition(".")[0] in self.encoding) == (role == "encode")

    def place(self, device: torch.device | str, *, role: Role) -> None:
        """Move what a role needs."""
        for name, module in self.named_children():
            if self.serves(name, role):
                module.to(device)
        for name, parameter in self.named_parameters(recurse=False):
            if self.serves(name, role):
                parameter.data = parameter.data.to(device)


NetworkT = TypeVar("NetworkT", bound=VideoNetwork)

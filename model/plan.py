"""How much memory a model of known sizes takes, and how many conversations fit beside it; loads no weight."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from model.quantization import Quantization, quantized_bytes

MIB = 1024**2


@dataclass(frozen=True, kw_only=True, slots=True)
class Blueprint:
    """What memory depends on, of one model."""

    modules: Mapping[str, int]
    """Parameters by module."""
    quantizable: str
    """The module of which linear layers can be quantised."""
    linear_shapes: Sequence[tuple[int, int]]
    """Those layers' weights."""
    kv_values_per_token: int
    """Keys and values of all layers."""
    max_model_len: int
    num_video_tokens: int
    encoder_values_per_clip: int
    """Activations alive at once while one clip is encoded, estimated from the widest place."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """A blueprint's memory in one dtype."""

    module_bytes: Mapping[str, int]
    kv_bytes_per_token: int
    encoder_bytes_per_clip: int

    @property
    def weight_bytes(self) -> int:
        """All modules together."""
        return sum(self.module_bytes.values())

    def largest_batch(self, budget: int, *, num_tokens: int) -> int:
        """Conversations of `num_tokens` positions that fit into `budget` bytes, while one clip is encoded."""
        left = budget - self.weight_bytes - self.encoder_bytes_per_clip
        return max(0, left // (self.kv_bytes_per_token * num_tokens))


def plan(blueprint: Blueprint, dtype: torch.dtype, quantization: Quantization | None = None) -> Plan:
    """The memory of weights, KV cache and activations: in `dtype`, but for the weights that are quantised."""
    module_bytes = {name: count * dtype.itemsize for name, count in blueprint.modules.items()}
    if quantization is not None:
        for shape in blueprint.linear_shapes:
            fewer = quantized_bytes(quantization, shape, scale_bytes=dtype.itemsize)
            module_bytes[blueprint.quantizable] -= math.prod(shape) * dtype.itemsize - fewer
    return Plan(
        module_bytes=module_bytes,
        kv_bytes_per_token=blueprint.kv_values_per_token * dtype.itemsize,
        encoder_bytes_per_clip=blueprint.encoder_values_per_clip * dtype.itemsize,
    )


def num_parameters(module: nn.Module) -> int:
    """Values in all parameters of a module, on any device."""
    return sum(parameter.numel() for parameter in module.parameters())

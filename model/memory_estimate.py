"""Estimates the memory of a model from its sizes, and how many conversations fit; loads no weights."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from model.networks.network import Network
from model.quantization import Quantization, linear_layers, quantized_bytes

MIB = 1024**2
LANGUAGE_MODEL = "LLaMA"
"""The name of the one module whose linear layers can be quantised."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ValueCounts:
    """How many values a model of one size has in memory, whatever their dtype."""

    modules: Mapping[str, int]
    """Parameters by module."""
    linear_shapes: Sequence[tuple[int, int]]
    """Shapes of the language model's linear layers, [out, in]."""
    kv_values_per_token: int
    """Keys and values of all layers."""
    condition_values: int
    """What the layers use at every token of one conversation."""
    max_model_len: int
    encoder_values_per_clip: int
    """Activations in memory at once while one clip is encoded, estimated from the widest layer."""


def count_values(
    network: Network, *, modules: Mapping[str, int], num_tokens: int = 0, width: int = 0, mlp_width: int = 0
) -> ValueCounts:
    """Count the values of a network, which may be on the meta device.

    Args:
        network: of any family.
        modules: parameters by module, without the language model.
        num_tokens: tokens of one clip in the vision transformer; 0 without one.
        width: of the vision transformer.
        mlp_width: hidden width of its MLPs.
    """
    sizes = network.config
    return ValueCounts(
        modules={**modules, LANGUAGE_MODEL: num_parameters(network.decoder)},
        linear_shapes=[(linear.out_features, linear.in_features) for linear in linear_layers(network.decoder)],
        kv_values_per_token=2 * sizes.decoder.depth * sizes.decoder.width,
        condition_values=sum(map(math.prod, sizes.condition_shapes.values())),
        max_model_len=sizes.decoder.max_positions,
        encoder_values_per_clip=num_tokens * (2 * mlp_width + 6 * width),
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class MemoryEstimate:
    """Bytes that a model takes in one dtype."""

    module_bytes: Mapping[str, int]
    kv_bytes_per_token: int
    condition_bytes: int
    encoder_bytes_per_clip: int

    @property
    def weight_bytes(self) -> int:
        """Bytes of all modules together."""
        return sum(self.module_bytes.values())

    def largest_batch(self, budget: int, *, num_tokens: int) -> int:
        """Return how many conversations of `num_tokens` positions fit into `budget` bytes while a clip is encoded."""
        left = budget - self.weight_bytes - self.encoder_bytes_per_clip
        return max(0, left // (self.kv_bytes_per_token * num_tokens + self.condition_bytes))


def estimate_memory(
    counts: ValueCounts, dtype: torch.dtype, quantization: Quantization | None = None
) -> MemoryEstimate:
    """Estimate the memory of weights, KV cache and activations in `dtype`, except for quantised weights."""
    module_bytes = {name: count * dtype.itemsize for name, count in counts.modules.items()}
    if quantization is not None:
        for shape in counts.linear_shapes:
            fewer = quantized_bytes(quantization, shape, scale_bytes=dtype.itemsize)
            module_bytes[LANGUAGE_MODEL] -= math.prod(shape) * dtype.itemsize - fewer
    return MemoryEstimate(
        module_bytes=module_bytes,
        kv_bytes_per_token=counts.kv_values_per_token * dtype.itemsize,
        condition_bytes=counts.condition_values * dtype.itemsize,
        encoder_bytes_per_clip=counts.encoder_values_per_clip * dtype.itemsize,
    )


def num_parameters(module: nn.Module) -> int:
    """Return the number of values in all parameters of a module, on any device."""
    return sum(parameter.numel() for parameter in module.parameters())

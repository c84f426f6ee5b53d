"""How much memory a model of known sizes takes, and how many conversations fit beside it; loads no weight."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from model.networks.video_network import VideoNetwork
from model.quantization import Quantization, linear_layers, quantized_bytes

MIB = 1024**2
LANGUAGE_MODEL = "LLaMA"
"""What the one module is called of which linear layers can be quantised."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Blueprint:
    """What memory depends on, of one model."""

    modules: Mapping[str, int]
    """Parameters by module."""
    linear_shapes: Sequence[tuple[int, int]]
    """Weights of the language model's linear layers."""
    kv_values_per_token: int
    """Keys and values of all layers."""
    max_model_len: int
    encoder_values_per_clip: int
    """Activations alive at once while one clip is encoded, estimated from the widest place."""


def blueprint_of(network: VideoNetwork, *, modules: Mapping[str, int], encoder_values_per_clip: int) -> Blueprint:
    """The blueprint of a network, which may be on the meta device.

    Args:
        network: of any family.
        modules: parameters by module, without the language model.
        encoder_values_per_clip: activations alive at once while one clip is encoded.
    """
    sizes = network.config
    return Blueprint(
        modules={**modules, LANGUAGE_MODEL: num_parameters(network.decoder)},
        linear_shapes=[(linear.out_features, linear.in_features) for linear in linear_layers(network.decoder)],
        kv_values_per_token=2 * sizes.decoder.depth * sizes.decoder.width,
        max_model_len=sizes.decoder.max_positions,
        encoder_values_per_clip=encoder_values_per_clip,
    )


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
            module_bytes[LANGUAGE_MODEL] -= math.prod(shape) * dtype.itemsize - fewer
    return Plan(
        module_bytes=module_bytes,
        kv_bytes_per_token=blueprint.kv_values_per_token * dtype.itemsize,
        encoder_bytes_per_clip=blueprint.encoder_values_per_clip * dtype.itemsize,
    )


def num_parameters(module: nn.Module) -> int:
    """Values in all parameters of a module, on any device."""
    return sum(parameter.numel() for parameter in module.parameters())

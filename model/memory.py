"""How many blocks of keys and values one of several processes on a device may have."""

from dataclasses import replace

import torch
from transformers import LlamaForCausalLM

from model.engine.config import EngineConfig
from model.engine.kv_cache import bytes_per_block, cache_dtype, free_bytes

_USABLE = 0.9
"""Of a GPU's memory; the rest is for activations."""


def within_share(config: EngineConfig, language_model: LlamaForCausalLM, *, share: float) -> EngineConfig:
    """The configuration with the blocks that fit into a share of the device; the engine's own choice where all is ours.

    A share of a GPU is of all its memory, the weights included: what is free depends on who came first, and a process
    that begins again beside others is to get what it had. On the CPU it is of what is free, since the pages of a cache
    are taken when they are first written to.

    Raises:
        ValueError: the longest sequence does not fit.
    """
    if share == 1:
        return config
    device = language_model.device
    free = free_bytes(device)
    budget = int(free * share)
    if device.type == "cuda":
        total = torch.cuda.mem_get_info(device)[1]
        budget = left_of_share(free=free, total=total, own=torch.cuda.memory_reserved(device), share=share)
    dtype = cache_dtype(language_model.dtype, device)
    num_blocks = budget // bytes_per_block(language_model.config, block_size=config.block_size, dtype=dtype)
    return replace(config, num_blocks=max(1, min(config.max_useful_blocks, num_blocks)))


def left_of_share(*, free: int, total: int, own: int, share: float) -> int:
    """Bytes that a process may still take of its share of a GPU, of which it has taken `own`; no more than `free`."""
    return min(free, int(total * _USABLE * share) - own)

"""Limits the KV cache of one of several processes on a device to its share of the memory."""

from dataclasses import replace

import torch
from transformers import LlamaForCausalLM

from model.engine.config import EngineConfig
from model.engine.kv_cache import cache_dtype, free_bytes
from model.engine.model_runner import num_fitting_blocks

_USABLE = 0.9
"""Fraction of a GPU's memory for weights and KV cache; the rest is for activations."""


def within_share(config: EngineConfig, language_model: LlamaForCausalLM, *, share: float) -> EngineConfig:
    """Return the configuration with the blocks that fit into a share of the device; unchanged for a share of 1.

    On a GPU the share is of all memory, weights included: free memory depends on which process started first, and a
    process that restarts beside others must get the same number of blocks. On the CPU the share is of free memory,
    because the pages of a cache are allocated when they are first written.

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
    num_blocks = num_fitting_blocks(budget, config, language_model.config, dtype=dtype)
    return replace(config, num_blocks=max(1, min(config.max_useful_blocks, num_blocks)))


def left_of_share(*, free: int, total: int, own: int, share: float) -> int:
    """Return the bytes left of a process's share of a GPU, of which it uses `own` already; at most `free`."""
    return min(free, int(total * _USABLE * share) - own)

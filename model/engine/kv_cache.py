"""The KV cache: tensors of keys and values, addressed by slots, one for each token. It knows nothing of sequences."""

from collections.abc import Sequence

import torch
from transformers import LlamaConfig

from model.free_memory import free_main_memory

_SHARE_OF_FREE = {"cuda": 0.9, "cpu": 0.5}
"""The share of the memory free after loading the weights that keys and values may take."""


class KVCache:
    """Two tensors [num_layers, num_kv_heads, num_slots, head_dim]; block b has the slots from b x block_size on."""

    def __init__(
        self,
        config: LlamaConfig,
        *,
        num_blocks: int,
        block_size: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        shape = (config.num_hidden_layers, config.num_key_value_heads, num_blocks * block_size, config.head_dim)
        # On the CPU a page of memory is allocated when it is first written to.
        self._keys = torch.empty(shape, dtype=dtype, device=device)
        self._values = torch.empty(shape, dtype=dtype, device=device)
        self._block_size = block_size
        self.dtype = dtype

    def write(self, layer: int, slots: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Write keys and values [num_kv_heads, n, head_dim] of one layer to the slots [n]."""
        self._keys[layer].index_copy_(1, slots, keys)
        self._values[layer].index_copy_(1, slots, values)

    def run(self, layer: int, first: int, num_slots: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values in a run of slots, as views [num_kv_heads, num_slots, head_dim]."""
        return self._keys[layer, :, first : first + num_slots], self._values[layer, :, first : first + num_slots]

    def layer(self, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
        """All keys and values of a layer, as views [num_kv_heads, num_slots, head_dim]."""
        return self._keys[layer], self._values[layer]

    def copy_blocks(self, pairs: Sequence[tuple[int, int]]) -> None:
        """Copy whole blocks in all layers, each pair from the first to the second, in order."""
        size = self._block_size
        for source, target in pairs:
            for tensor in (self._keys, self._values):
                tensor[:, :, target * size : (target + 1) * size] = tensor[:, :, source * size : (source + 1) * size]


def cache_dtype(dtype: torch.dtype, device: torch.device) -> torch.dtype:
    """The dtype of keys, values and attention for a model of the given dtype.

    On the CPU always float32: few CPUs have 16-bit arithmetic, and without it torch's kernel took five times as long.
    """
    return torch.float32 if device.type == "cpu" else dtype


def bytes_per_block(config: LlamaConfig, *, block_size: int, dtype: torch.dtype) -> int:
    """Memory that one block takes, all layers together."""
    values_per_token: int = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim
    return values_per_token * block_size * dtype.itemsize


def free_bytes(device: torch.device) -> int:
    """Memory that the cache may take of what is free now."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0] * _SHARE_OF_FREE["cuda"])
    return int(free_main_memory() * _SHARE_OF_FREE["cpu"])

"""Keys and values of every sequence that runs. Knows of layers and positions, not of what a request is.

One contiguous buffer a sequence. Callers only allocate, append and free, so that blocks can take its place.
"""

from dataclasses import dataclass

import torch

_GRANULE = 128
"""Tokens; room is taken in multiples of it, so that decode does not reallocate at every step."""


@dataclass(slots=True)
class _Buffer:
    keys: torch.Tensor  # [num_layers, num_kv_heads, capacity, head_dim]
    values: torch.Tensor  # the same


class KVCache:
    """Room for the keys and values of many sequences, each under its request's id."""

    def __init__(
        self,
        *,
        num_layers: int,
        num_kv_heads: int,
        head_dim: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self._num_layers = num_layers
        self._num_kv_heads = num_kv_heads
        self._head_dim = head_dim
        self._dtype = dtype
        self._device = device
        self._buffers: dict[str, _Buffer] = {}

    @property
    def num_sequences(self) -> int:
        """Sequences that hold room."""
        return len(self._buffers)

    def allocate(self, request_id: str, num_tokens: int) -> None:
        """Make sure that the sequence has room for `num_tokens` in all; what it holds is kept."""
        old = self._buffers.get(request_id)
        capacity = old.keys.shape[2] if old else 0
        if num_tokens <= capacity:
            return
        # Grows by half at least, so that a long answer copies its past a few times only.
        capacity = -(-max(num_tokens, capacity * 3 // 2) // _GRANULE) * _GRANULE
        new = _Buffer(self._empty(capacity), self._empty(capacity))
        if old:
            new.keys[:, :, : old.keys.shape[2]] = old.keys
            new.values[:, :, : old.values.shape[2]] = old.values
        self._buffers[request_id] = new

    def append(
        self, request_id: str, layer: int, *, keys: torch.Tensor, values: torch.Tensor, start: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write one layer's keys and values [num_kv_heads, n, head_dim] at positions [start, start + n).

        Returns:
            All keys and all values of the layer so far, each [num_kv_heads, start + n, head_dim].
        """
        buffer = self._buffers[request_id]
        end = start + keys.shape[1]
        buffer.keys[layer, :, start:end] = keys
        buffer.values[layer, :, start:end] = values
        return buffer.keys[layer, :, :end], buffer.values[layer, :, :end]

    def free(self, request_id: str) -> None:
        """Give a sequence's room back; one that never had any is no mistake."""
        self._buffers.pop(request_id, None)

    def _empty(self, capacity: int) -> torch.Tensor:
        shape = (self._num_layers, self._num_kv_heads, capacity, self._head_dim)
        return torch.empty(shape, dtype=self._dtype, device=self._device)

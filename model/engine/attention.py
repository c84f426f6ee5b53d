"""Attention of a pack of rows, each to the cached blocks of its sequence, as an implementation for transformers.

A row is one token of the step; the pack has the rows of all chunks, one chunk after the other. There is no state: the
plan of the step is an argument of the forward pass. The plan in this module uses torch's own kernels; the plan for GPUs
is in `paged_attention`.

No keys or values are copied. Adjacent blocks are read as one run of slots, and all rows that attend to the same run
(sequences about one video) do so in one kernel call. The results of a row from several runs are then combined with the
log-sum-exp of their scores, as FlashAttention combines its tiles (Dao et al. 2022).
"""

from collections import defaultdict
from collections.abc import Iterator
from collections.abc import Sequence as Ordered
from dataclasses import dataclass
from typing import Protocol

import torch
from transformers import AttentionInterface

from model.engine.block_pool import adjacent_runs
from model.engine.kv_cache import KVCache

IMPLEMENTATION = "reeltalk"
"""Its name in the registry of transformers. The registry of masks has no such name, so no mask is built."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Rows:
    """The rows of one chunk: [first, first + num_rows) in the pack, positions from `start` on, and its blocks."""

    first: int
    num_rows: int
    start: int
    blocks: Ordered[int]
    num_shared: int = 0
    """How many of the blocks, counted from the first, other sequences hold too."""

    def slots(self, block_size: int) -> Iterator[int]:
        """The slot of the cache in which each row's key and value are stored."""
        for position in range(self.start, self.start + self.num_rows):
            yield self.blocks[position // block_size] * block_size + position % block_size


class AttentionPlan(Protocol):
    """What the attention layers must know about a step."""

    @property
    def slots(self) -> torch.Tensor:
        """[rows]: the slot in which each row's key and value are stored."""

    @property
    def kv_cache(self) -> KVCache:
        """The cache in which they are stored."""

    def attend(
        self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float
    ) -> torch.Tensor:
        """Attention of every row to all positions of its sequence up to its own.

        Args:
            layer: number of the layer.
            query: [num_heads, rows, head_dim].
            key: [num_kv_heads, rows, head_dim]; already in the cache, as are those of earlier steps.
            value: [num_kv_heads, rows, head_dim]; likewise.
            scaling: factor of the scores.

        Returns:
            [rows, num_heads, head_dim].
        """


@dataclass(frozen=True, slots=True, eq=False)
class AttentionCall:
    """One kernel call: rows of the pack that all attend to one whole run of slots; without a run, to each other."""

    rows: slice | torch.Tensor
    run: tuple[int, int] | None
    """First slot and number of slots; None for causal attention among the rows."""


@dataclass(frozen=True, slots=True, eq=False)
class RunPlan:
    """Attention in one kernel call for each run of adjacent slots."""

    calls: tuple[AttentionCall, ...]
    parts: torch.Tensor | None
    """[rows, n]: the indices of each row's results among the results of all calls, one call after the other; rows with
    fewer than n results are padded with the index past the end. None if each row has one result, in order."""
    slots: torch.Tensor
    kv_cache: KVCache

    def attend(
        self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float
    ) -> torch.Tensor:
        """As `AttentionPlan.attend`."""
        results, log_sums = [], []
        for call in self.calls:
            rows = query[:, call.rows]  # [num_heads, n, head_dim]
            if call.run is None:
                result, log_sum = _attend_causally(rows, key[:, call.rows], value[:, call.rows], scaling)
            else:
                keys, values = self.kv_cache.run(layer, *call.run)
                result, log_sum = _attend_fully(rows, keys, values, scaling)
            results.append(result.transpose(0, 1))  # [n, num_heads, head_dim]
            log_sums.append(log_sum.transpose(0, 1))  # [n, num_heads]
        result = torch.cat(results) if len(results) > 1 else results[0]
        return result if self.parts is None else _combine(result, torch.cat(log_sums), self.parts)


def register() -> None:
    """Register the implementation with transformers; may be called again."""
    AttentionInterface.register(IMPLEMENTATION, attend)


def make_plan(pack: Ordered[Rows], kv_cache: KVCache, *, block_size: int, device: torch.device) -> RunPlan:
    """Plan the attention of a step: which rows attend to which runs of slots."""
    rows_of_run: dict[tuple[int, int], list[int]] = defaultdict(list)
    calls: list[tuple[list[int], tuple[int, int] | None]] = []
    slots: list[int] = []
    for rows in pack:
        slots += rows.slots(block_size)
        indices = range(rows.first, rows.first + rows.num_rows)
        if rows.num_rows > 1:
            calls.append((list(indices), None))
        # The key of a single row is in the cache when it is read, so no causal call is needed for it.
        num_slots = rows.start + 1 if rows.num_rows == 1 else rows.start
        for run in _runs(rows, num_slots=num_slots, block_size=block_size):
            rows_of_run[run] += indices
    calls += [(indices, run) for run, indices in rows_of_run.items()]
    order = [index for indices, _ in calls for index in indices]
    return RunPlan(
        calls=tuple(AttentionCall(_as_slice(indices, device), run) for indices, run in calls),
        parts=_parts(order, num_rows=len(slots), device=device),
        slots=torch.tensor(slots, device=device),
        kv_cache=kv_cache,
    )


def attend(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    plan: AttentionPlan,
    scaling: float,
    **_: object,
) -> tuple[torch.Tensor, None]:
    """Write the keys and values of a step to the cache, and attend.

    Args:
        module: the attention layer; its `layer_idx` is its number in the cache.
        query: [1, num_heads, rows, head_dim], after rotary embedding.
        key: [1, num_kv_heads, rows, head_dim], after rotary embedding.
        value: [1, num_kv_heads, rows, head_dim].
        attention_mask: must be None, because a mask cannot describe a pack.
        plan: the plan of the step.
        scaling: factor of the scores.

    Returns:
        [1, rows, num_heads, head_dim], and None in place of the weights.
    """
    assert attention_mask is None
    layer = module.layer_idx
    assert isinstance(layer, int)
    dtype = query.dtype
    query, key, value = (each.to(plan.kv_cache.dtype) for each in (query, key, value))
    plan.kv_cache.write(layer, plan.slots, key[0], value[0])
    result = plan.attend(layer, query[0], key[0], value[0], scaling)
    return result[None].to(dtype), None


def _attend_fully(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, scaling: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention of every row to every slot: results [num_heads, n, head_dim] and log-sum-exps [num_heads, n]."""
    num_heads, num_rows, head_dim = query.shape
    # Query heads that share a key head become further rows of that head, so that no keys are repeated.
    grouped = query.reshape(len(keys), -1, head_dim)
    result, log_sum = _flash(grouped, keys, values, scaling, is_causal=False)
    return result.reshape(num_heads, num_rows, head_dim), log_sum.reshape(num_heads, num_rows)


def _attend_causally(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, scaling: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention of row i to rows 0 to i; shapes as in `_attend_fully`."""
    group = len(query) // len(keys)
    if group > 1:
        keys, values = keys.repeat_interleave(group, dim=0), values.repeat_interleave(group, dim=0)
    return _flash(query, keys, values, scaling, is_causal=True)


def _flash(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, scaling: float, *, is_causal: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """torch's own attention kernel, in the form that also returns the log-sum-exp of the scores."""
    query, keys, values = query[None], keys[None], values[None]
    if query.device.type == "cpu":
        result, log_sum = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            query, keys, values, 0.0, is_causal, scale=scaling
        )
    else:
        result, log_sum, *_ = torch.ops.aten._scaled_dot_product_efficient_attention(
            query, keys, values, None, True, 0.0, is_causal, scale=scaling
        )
        log_sum = log_sum[..., : query.shape[2]]  # the kernel pads the rows
    return result[0], log_sum[0]


def _combine(results: torch.Tensor, log_sums: torch.Tensor, parts: torch.Tensor) -> torch.Tensor:
    """Combine the results of calls [n, num_heads, head_dim] into those of rows: means weighted by the sums."""
    padding = log_sums.new_full((1, log_sums.shape[1]), -torch.inf)
    weights = torch.cat((log_sums, padding))[parts].softmax(dim=1)  # [rows, n, num_heads]
    padded = torch.cat((results, results.new_zeros(1, *results.shape[1:])))
    return torch.einsum("rnh,rnhd->rhd", weights.to(results.dtype), padded[parts])


def _runs(rows: Rows, *, num_slots: int, block_size: int) -> Iterator[tuple[int, int]]:
    """The first `num_slots` slots of a sequence as runs: first slot and number of slots; shared blocks separately."""
    num_blocks = -(-num_slots // block_size)
    num_shared = min(rows.num_shared, num_blocks)
    for indices in (range(num_shared), range(num_shared, num_blocks)):
        for run in adjacent_runs(rows.blocks, indices):
            end = min(run.stop * block_size, num_slots)
            yield rows.blocks[run.start] * block_size, end - run.start * block_size


def _as_slice(indices: list[int], device: torch.device) -> slice | torch.Tensor:
    """Indices of rows; as a slice, which needs no copy, if they are consecutive."""
    if indices[-1] - indices[0] + 1 == len(indices):
        return slice(indices[0], indices[-1] + 1)
    return torch.tensor(indices, device=device)


def _parts(order: list[int], *, num_rows: int, device: torch.device) -> torch.Tensor | None:
    """`RunPlan.parts`, if the results of all calls belong to the rows in `order`."""
    if order == list(range(num_rows)):
        return None
    parts: list[list[int]] = [[] for _ in range(num_rows)]
    for place, row in enumerate(order):
        parts[row].append(place)
    width = max(map(len, parts))
    return torch.tensor([[*each, *[len(order)] * (width - len(each))] for each in parts], device=device)

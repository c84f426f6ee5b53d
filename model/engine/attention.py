"""Attention over a pack of sequences, each against its blocks of the cache, in the form that transformers calls.

Holds no state: the plan of the step comes in as an argument of the forward pass. The plan here is for torch's own
kernels; the one for GPUs is in `paged_attention`. No key or value is copied: blocks that are adjacent are looked at as
one run, and rows that see the same run (sequences with one video) together. What a row saw in several runs is then put
together by the logarithms of their sums (as FlashAttention does between its tiles; Dao et al. 2022).
"""

from collections import defaultdict
from collections.abc import Iterator
from collections.abc import Sequence as Ordered
from dataclasses import dataclass
from itertools import groupby
from typing import Protocol

import torch
from transformers import AttentionInterface

from model.engine.kv_cache import KVCache

IMPLEMENTATION = "reeltalk"
"""Its name in transformers' registry. The mask registry does not know it, so no mask is built."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Rows:
    """Where one chunk lies: rows [first, first + num_rows) of the pack, positions from `start` on, and its blocks."""

    first: int
    num_rows: int
    start: int
    blocks: Ordered[int]
    num_shared: int = 0
    """So many of the blocks, the first, others hold too."""


class Plan(Protocol):
    """All that attention needs to know of one step."""

    @property
    def slots(self) -> torch.Tensor:
        """[rows]: where each row's key and value go."""

    @property
    def kv_cache(self) -> KVCache:
        """Where they go to, and where those of earlier steps are."""

    def look(
        self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float
    ) -> torch.Tensor:
        """What each row sees: from [heads, rows, head_dim] to [rows, num_heads, head_dim]. The cache has the rows."""


@dataclass(frozen=True, slots=True, eq=False)
class Look:
    """Rows of the pack that all see all of one run of slots; or, without a run, see each other causally."""

    rows: slice | torch.Tensor
    run: tuple[int, int] | None
    """First slot and number of slots."""


@dataclass(frozen=True, slots=True, eq=False)
class RunPlan:
    """A step as looks at runs of adjacent slots."""

    looks: tuple[Look, ...]
    parts: torch.Tensor | None
    """[rows, n]: where each row's results lie when those of all looks are laid out one after the other; a place
    past the end where a row has fewer than n. None where each row has one result, in the order of the rows."""
    slots: torch.Tensor
    """[rows]: where each row's key and value go."""
    kv_cache: KVCache

    def look(
        self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float
    ) -> torch.Tensor:
        """As `Plan.look`."""
        results, sums = [], []
        for look in self.looks:
            rows = query[:, look.rows]  # [num_heads, n, head_dim]
            if look.run is None:
                result, log_sum = _attend_causally(rows, key[:, look.rows], value[:, look.rows], scaling)
            else:
                keys, values = self.kv_cache.run(layer, *look.run)
                result, log_sum = _attend_fully(rows, keys, values, scaling)
            results.append(result.transpose(0, 1))  # [n, num_heads, head_dim]
            sums.append(log_sum.transpose(0, 1))  # [n, num_heads]
        result = torch.cat(results) if len(results) > 1 else results[0]
        return result if self.parts is None else _put_together(result, torch.cat(sums), self.parts)


def register() -> None:
    """Make the implementation known to transformers; again is no harm."""
    AttentionInterface.register(IMPLEMENTATION, attend)


def make_plan(pack: Ordered[Rows], kv_cache: KVCache, *, block_size: int, device: torch.device) -> RunPlan:
    """What each row of a pack is to look at."""
    seers: dict[tuple[int, int], list[int]] = defaultdict(list)
    causal: list[Rows] = []
    together: list[tuple[list[int], tuple[int, int] | None]]
    slots: list[int] = []
    for rows in pack:
        end = rows.start + rows.num_rows
        slots += (rows.blocks[p // block_size] * block_size + p % block_size for p in range(rows.start, end))
        # A row that is alone is in the cache by then, and sees itself there.
        seen = end if rows.num_rows == 1 else rows.start
        numbers = range(rows.first, rows.first + rows.num_rows)
        for run in _runs(rows.blocks, rows.num_shared, num_slots=seen, block_size=block_size):
            seers[run] += numbers
        if rows.num_rows > 1:
            causal.append(rows)
    together = [(list(range(rows.first, rows.first + rows.num_rows)), None) for rows in causal]
    together += [(numbers, run) for run, numbers in seers.items()]
    in_order = [number for numbers, _ in together for number in numbers]
    return RunPlan(
        looks=tuple(Look(_compact(numbers, device), run) for numbers, run in together),
        parts=_parts(in_order, num_rows=len(slots), device=device),
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
    plan: Plan,
    scaling: float,
    **_: object,
) -> tuple[torch.Tensor, None]:
    """Write the step's keys and values to their slots, and attend.

    Args:
        module: the attention layer that calls; its `layer_idx` says which part of the cache is meant.
        query: [1, num_heads, rows, head_dim], positions already rotated in.
        key: [1, num_kv_heads, rows, head_dim], likewise.
        value: [1, num_kv_heads, rows, head_dim].
        attention_mask: none, since the pack is no batch that a mask could describe.
        plan: what lies where in `rows`.
        scaling: of the scores.

    Returns:
        [1, rows, num_heads, head_dim], and no weights.
    """
    assert attention_mask is None
    layer = module.layer_idx
    assert isinstance(layer, int)
    said_in = query.dtype
    query, key, value = (each.to(plan.kv_cache.dtype) for each in (query, key, value))
    plan.kv_cache.write(layer, plan.slots, key[0], value[0])
    result = plan.look(layer, query[0], key[0], value[0], scaling)
    return result[None].to(said_in), None


def _attend_fully(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, scaling: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Every row sees every slot. Results [num_heads, n, head_dim], and logarithms of their sums [num_heads, n]."""
    num_heads, num_rows, head_dim = query.shape
    # Heads that share keys are further rows of these keys: nothing is repeated.
    grouped = query.reshape(len(keys), -1, head_dim)
    result, log_sum = _flash(grouped, keys, values, scaling, is_causal=False)
    return result.reshape(num_heads, num_rows, head_dim), log_sum.reshape(num_heads, num_rows)


def _attend_causally(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, scaling: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Row i sees rows 0 to i, in the same shapes."""
    times = len(query) // len(keys)
    if times > 1:
        keys, values = keys.repeat_interleave(times, dim=0), values.repeat_interleave(times, dim=0)
    return _flash(query, keys, values, scaling, is_causal=True)


def _flash(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, scaling: float, *, is_causal: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """torch's own kernel, in the form that also returns the logarithms of the sums."""
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


def _put_together(results: torch.Tensor, log_sums: torch.Tensor, parts: torch.Tensor) -> torch.Tensor:
    """Results [places, num_heads, head_dim] of runs to those of rows: the mean, weighted by the runs' sums."""
    nothing = log_sums.new_full((1, log_sums.shape[1]), -torch.inf)
    weights = torch.cat((log_sums, nothing))[parts].softmax(dim=1)  # [rows, n, num_heads]
    padded = torch.cat((results, results.new_zeros(1, *results.shape[1:])))
    return torch.einsum("rnh,rnhd->rhd", weights.to(results.dtype), padded[parts])


def _runs(blocks: Ordered[int], num_shared: int, *, num_slots: int, block_size: int) -> Iterator[tuple[int, int]]:
    """The slots of the first `num_slots` positions, as few adjacent ones as may be; shared blocks by themselves."""
    num_blocks = -(-num_slots // block_size)
    shared = min(num_shared, num_blocks)
    for start, stop in ((0, shared), (shared, num_blocks)):
        for _, group in groupby(range(start, stop), lambda number: blocks[number] - number):
            first, *rest = group
            last = rest[-1] if rest else first
            end = min((last + 1) * block_size, num_slots)
            yield blocks[first] * block_size, end - first * block_size


def _compact(numbers: list[int], device: torch.device) -> slice | torch.Tensor:
    """Rows by number; as a slice where they are adjacent, which copies nothing."""
    if numbers[-1] - numbers[0] + 1 == len(numbers):
        return slice(numbers[0], numbers[-1] + 1)
    return torch.tensor(numbers, device=device)


def _parts(in_order: list[int], *, num_rows: int, device: torch.device) -> torch.Tensor | None:
    """`RunPlan.parts`, where the results of all looks belong to the rows `in_order`."""
    if in_order == list(range(num_rows)):
        return None
    places: list[list[int]] = [[] for _ in range(num_rows)]
    for place, row in enumerate(in_order):
        places[row].append(place)
    most = max(map(len, places))
    return torch.tensor([[*each, *[len(in_order)] * (most - len(each))] for each in places], device=device)

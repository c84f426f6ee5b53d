"""Decode steps as captured CUDA graphs, one for each batch size: one launch a step instead of hundreds.

A batch is padded to the next size with rows that write to a spare block, which no sequence holds.
"""

from collections.abc import Callable
from collections.abc import Sequence as Ordered
from dataclasses import dataclass

import torch

from model.engine.attention import AttentionPlan, Rows
from model.engine.conditions import ConditionTable
from model.engine.kv_cache import KVCache
from model.engine.paged_attention import PagedPlan, padded

Forward = Callable[[torch.Tensor, torch.Tensor, AttentionPlan], torch.Tensor]
"""Computes logits [n, vocab] from token ids [n], positions [n] and a plan."""


class DecodeGraphs:
    """The graphs of a language model, for steps that compute one text token of every sequence."""

    def __init__(
        self,
        forward: Forward,
        kv_cache: KVCache,
        *,
        block_size: int,
        spare_block: int,
        max_num_seqs: int,
        max_blocks: int,
        device: torch.device,
        conditions: ConditionTable | None = None,
    ) -> None:
        self._graphs: list[_Graph] = []
        pool = None
        for size in reversed(batch_sizes(max_num_seqs)):  # the largest first, because the others reuse its memory
            graph = _Graph(
                forward,
                kv_cache,
                size=size,
                block_size=block_size,
                spare_block=spare_block,
                max_blocks=max_blocks,
                device=device,
                pool=pool,
                conditions=conditions,
            )
            pool = graph.captured.pool
            self._graphs.insert(0, graph)

    def run(self, rows: Ordered[Rows], token_ids: Ordered[int], condition_slots: Ordered[int]) -> torch.Tensor:
        """Compute one token for each of `rows`; returns logits [n, vocab].

        `condition_slots` has the slot of each row's condition; it is empty for a model without conditions.
        """
        graph = next(each for each in self._graphs if each.size >= len(rows))
        return graph.run(rows, token_ids, condition_slots)


def batch_sizes(max_size: int) -> list[int]:
    """The sizes for which a graph is captured: 1, 2, 4, multiples of 8, and `max_size`."""
    return sorted({size for size in (1, 2, 4, *range(8, max_size, 8)) if size < max_size} | {max_size})


class _Graph:
    """One captured forward pass, and the tensors it reads."""

    def __init__(
        self,
        forward: Forward,
        kv_cache: KVCache,
        *,
        size: int,
        block_size: int,
        spare_block: int,
        max_blocks: int,
        device: torch.device,
        pool: tuple[int, int] | None,
        conditions: ConditionTable | None,
    ) -> None:
        self.size = size
        self._block_size, self._spare_block, self._max_blocks = block_size, spare_block, max_blocks
        # Token ids, positions, slots and perhaps slots of conditions, a line each, so that one copy fills all of them.
        self._numbers = torch.zeros(3 if conditions is None else 4, size, dtype=torch.long, device=device)
        self._fill(self._numbers, self._padding(size))
        tables = torch.full((size, max_blocks), spare_block, dtype=torch.int32, device=device)
        number = torch.arange(size, dtype=torch.int32, device=device)
        tiles = torch.stack((number, torch.ones_like(number), torch.zeros_like(number), number))
        token_ids, positions, slots = self._numbers[:3]
        self._plan = paged = PagedPlan(
            slots=slots, kv_cache=kv_cache, block_size=block_size, block_tables=tables, tiles=tiles, tile_rows=1
        )
        plan: AttentionPlan = paged if conditions is None else conditions.plan(paged, self._numbers[3])

        def step() -> torch.Tensor:
            paged.tiles[2].copy_(positions)
            return forward(token_ids, positions, plan)

        self.captured = capture(step, device=device, pool=pool)

    def run(self, rows: Ordered[Rows], token_ids: Ordered[int], condition_slots: Ordered[int]) -> torch.Tensor:
        positions = [each.start for each in rows]
        slots = [slot for each in rows for slot in each.slots(self._block_size)]
        lines = (token_ids, positions, slots, condition_slots)[: len(self._numbers)]
        padding = self._padding(self.size - len(rows))
        self._fill(self._numbers, [[*real, *added] for real, added in zip(lines, padding, strict=True)])
        self._fill(self._plan.block_tables[: len(rows)], padded([each.blocks for each in rows], self._max_blocks))
        self.captured.launch()
        return self.captured.result[: len(rows)].clone()  # the next launch overwrites the original

    def _padding(self, count: int) -> list[list[int]]:
        return [[0] * count, [0] * count, [self._spare_block * self._block_size] * count, [0] * count][
            : len(self._numbers)
        ]

    @staticmethod
    def _fill(target: torch.Tensor, numbers: list[list[int]]) -> None:
        target.copy_(torch.tensor(numbers, dtype=target.dtype))


@dataclass(frozen=True, slots=True, eq=False)
class Captured:
    """A captured function."""

    launch: Callable[[], object]
    result: torch.Tensor
    """The tensor that the function returned; each launch overwrites it."""
    pool: tuple[int, int] | None
    """Its memory pool, which graphs that never run at the same time can share."""


def capture(function: Callable[[], torch.Tensor], *, device: torch.device, pool: tuple[int, int] | None) -> Captured:
    """Capture the work that a function launches on a GPU."""
    with torch.cuda.device(device):
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(2):  # compiles kernels, and lets libraries allocate their memory
                function()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=pool):  # type: ignore[arg-type]
            result = function()
        return Captured(graph.replay, result, graph.pool())

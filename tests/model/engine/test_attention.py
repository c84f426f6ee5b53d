"""A row attends to the tokens of its sequence up to itself, whatever the blocks and however they are shared."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LlamaConfig

from model.engine.attention import Rows, attend, make_plan
from model.engine.kv_cache import KVCache

HEADS, KV_HEADS, DIM, BLOCK, BLOCKS = 4, 2, 8, 4, 40
CONFIG = LlamaConfig(
    num_hidden_layers=2, num_attention_heads=HEADS, num_key_value_heads=KV_HEADS, hidden_size=HEADS * DIM, head_dim=DIM
)
CPU = torch.device("cpu")


class Layer(torch.nn.Module):
    layer_idx = 1


def plain(query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """[heads, n, dim]: causal attention of the last n positions, written out."""
    keys, values = (each.repeat_interleave(HEADS // KV_HEADS, dim=0) for each in (keys, values))
    num_rows, length = query.shape[1], keys.shape[1]
    scores = query @ keys.transpose(1, 2) * 0.3
    seen = torch.ones(num_rows, length, dtype=torch.bool).tril(length - num_rows)
    return scores.masked_fill(~seen, -torch.inf).softmax(-1) @ values


chunks = st.lists(st.tuples(st.integers(0, 14), st.sampled_from([1, 1, 2, 7])), min_size=1, max_size=5)


@settings(max_examples=60, deadline=None)
@given(chunks=chunks, num_shared=st.integers(0, 2), order=st.randoms(use_true_random=False))
def test_a_chunk_in_a_pack_has_the_result_of_the_chunk_alone(
    chunks: list[tuple[int, int]], num_shared: int, order: object
) -> None:
    generator = torch.Generator().manual_seed(len(chunks))
    cache = KVCache(CONFIG, num_blocks=BLOCKS, block_size=BLOCK, dtype=torch.float32, device=CPU)
    free = list(range(BLOCKS))
    order.shuffle(free)  # type: ignore[attr-defined]
    common = [free.pop() for _ in range(num_shared)]
    common_keys = torch.randn(2, KV_HEADS, num_shared * BLOCK, DIM, generator=generator)
    pack, pasts, first = [], [], 0
    for start, num_rows in chunks:
        start += num_shared * BLOCK  # noqa: PLW2901
        own = [free.pop() for _ in range(-(-(start + num_rows) // BLOCK) - num_shared)]
        blocks = [*common, *own]
        past = torch.randn(2, KV_HEADS, start, DIM, generator=generator)
        past[:, :, : num_shared * BLOCK] = common_keys
        slots = torch.tensor([blocks[p // BLOCK] * BLOCK + p % BLOCK for p in range(start)], dtype=torch.long)
        cache.write(1, slots, past[0], past[1])
        pasts.append(past)
        pack.append(Rows(first=first, num_rows=num_rows, start=start, blocks=blocks, num_shared=num_shared))
        first += num_rows
    query = torch.randn(1, HEADS, first, DIM, generator=generator)
    key, value = torch.randn(2, 1, KV_HEADS, first, DIM, generator=generator)
    plan = make_plan(pack, cache, block_size=BLOCK, device=CPU)
    found, _ = attend(Layer(), query, key, value, None, plan=plan, scaling=0.3)
    assert found.shape == (1, first, HEADS, DIM)
    for rows, past in zip(pack, pasts, strict=True):
        here = slice(rows.first, rows.first + rows.num_rows)
        keys = torch.cat((past[0], key[0, :, here]), dim=1)
        values = torch.cat((past[1], value[0, :, here]), dim=1)
        expected = plain(query[0, :, here], keys, values).transpose(0, 1)
        torch.testing.assert_close(found[0, here], expected)


def test_rows_that_share_blocks_attend_to_them_in_one_call() -> None:
    cache = KVCache(CONFIG, num_blocks=BLOCKS, block_size=BLOCK, dtype=torch.float32, device=CPU)
    pack = [Rows(first=n, num_rows=1, start=13, blocks=[0, 1, 2, 5 + n], num_shared=3) for n in range(4)]
    plan = make_plan(pack, cache, block_size=BLOCK, device=CPU)
    assert sorted((call.run or (), call.rows) for call in plan.calls) == [
        ((0, 12), slice(0, 4)),
        *(((20 + 4 * n, 2), slice(n, n + 1)) for n in range(4)),
    ]


def test_adjacent_blocks_are_one_run_whose_results_need_no_combining() -> None:
    cache = KVCache(CONFIG, num_blocks=BLOCKS, block_size=BLOCK, dtype=torch.float32, device=CPU)
    pack = [Rows(first=n, num_rows=1, start=20, blocks=range(10 * n, 10 * n + 6)) for n in range(3)]
    plan = make_plan(pack, cache, block_size=BLOCK, device=CPU)
    assert [call.run for call in plan.calls] == [(0, 21), (40, 21), (80, 21)]
    assert plan.parts is None

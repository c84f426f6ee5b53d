"""The kernel gives the results of plain attention; without a GPU, Triton interprets it on the CPU."""

import importlib.util
from collections.abc import Callable
from collections.abc import Sequence as Ordered
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LlamaConfig

if importlib.util.find_spec("triton") is None:
    pytest.skip("Triton is not installed; it comes with torch for CUDA.", allow_module_level=True)

from model.engine import decode_graphs, model_runner
from model.engine.attention import Rows, attend
from model.engine.decode_graphs import Captured, batch_sizes
from model.engine.engine import Engine, EngineConfig
from model.engine.kv_cache import KVCache
from model.engine.paged_attention import make_plan
from model.engine.sampling_params import SamplingParams
from model.engine.sequence import ADDED, Condition
from tests.model.engine.small_llama import (
    Bytes,
    Received,
    condition,
    generate,
    run_to_end,
    small_llama,
    text,
    video,
)
from tests.model.engine.test_attention import Layer, plain

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
HEADS, KV_HEADS, DIM, BLOCK, BLOCKS = 4, 2, 8, 4, 200
LLAMA = LlamaConfig(
    num_hidden_layers=2, num_attention_heads=HEADS, num_key_value_heads=KV_HEADS, hidden_size=HEADS * DIM, head_dim=DIM
)

chunks = st.lists(st.tuples(st.integers(0, 150), st.sampled_from([1, 1, 2, 7, 40])), min_size=1, max_size=4)


@settings(max_examples=25, deadline=None)
@given(chunks=chunks, order=st.randoms(use_true_random=False))
def test_a_chunk_in_a_pack_has_the_result_of_the_chunk_alone(chunks: list[tuple[int, int]], order: object) -> None:
    generator = torch.Generator().manual_seed(len(chunks))
    cache = KVCache(LLAMA, num_blocks=BLOCKS, block_size=BLOCK, dtype=torch.float32, device=DEVICE)
    free = list(range(BLOCKS))
    order.shuffle(free)  # type: ignore[attr-defined]
    pack, pasts, first = [], [], 0
    for start, num_rows in chunks:
        blocks = [free.pop() for _ in range(-(-(start + num_rows) // BLOCK))]
        past = torch.randn(2, KV_HEADS, start, DIM, generator=generator).to(DEVICE)
        slots = [blocks[p // BLOCK] * BLOCK + p % BLOCK for p in range(start)]
        cache.write(1, torch.tensor(slots, dtype=torch.long, device=DEVICE), past[0], past[1])
        pasts.append(past)
        pack.append(Rows(first=first, num_rows=num_rows, start=start, blocks=blocks))
        first += num_rows
    query = torch.randn(1, HEADS, first, DIM, generator=generator).to(DEVICE)
    key, value = torch.randn(2, 1, KV_HEADS, first, DIM, generator=generator).to(DEVICE)
    plan = make_plan(pack, cache, block_size=BLOCK, group=HEADS // KV_HEADS, device=DEVICE)
    found, _ = attend(Layer(), query, key, value, None, plan=plan, scaling=0.3)
    assert found.shape == (1, first, HEADS, DIM)
    for rows, past in zip(pack, pasts, strict=True):
        here = slice(rows.first, rows.first + rows.num_rows)
        keys = torch.cat((past[0], key[0, :, here]), dim=1)
        values = torch.cat((past[1], value[0, :, here]), dim=1)
        expected = plain(query[0, :, here], keys, values).transpose(0, 1)
        torch.testing.assert_close(found[0, here], expected, atol=2e-5, rtol=1e-4)


def test_batch_sizes_end_with_the_largest() -> None:
    assert batch_sizes(1) == [1]
    assert batch_sizes(3) == [1, 2, 3]
    assert batch_sizes(8) == [1, 2, 4, 8]
    assert batch_sizes(30) == [1, 2, 4, 8, 16, 24, 30]


@pytest.fixture
def captured(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The batch size of every launch. Without a GPU a launch calls the function and copies its result."""
    launches: list[int] = []

    def fake_capture(function: Callable[[], torch.Tensor], **_: object) -> Captured:
        result = function().clone()

        def launch() -> None:
            launches.append(len(result))
            result.copy_(function())

        return Captured(launch, result, None)

    if DEVICE.type == "cpu":
        monkeypatch.setattr(model_runner, "runs_paged", lambda _: True)
        monkeypatch.setattr(decode_graphs, "capture", fake_capture)
    return launches


def answers(*, cuda_graphs: bool, conditions: Ordered[Condition | None] = (None,)) -> dict[str, Received]:
    config = EngineConfig(
        max_num_seqs=5, max_model_len=96, max_num_batched_tokens=40, block_size=4, cuda_graphs=cuda_graphs
    )
    if any(conditions):
        config = replace(config, condition_shapes={ADDED: (2, 4, 8)})
    running = Engine(small_llama().to(DEVICE), Bytes(), config)
    for number in range(7):
        running.add_request(
            str(number),
            (text(2 + 5 * number, seed=number), video(10, seed=number % 2)),
            SamplingParams(max_tokens=3 + number, temperature=0.0, ignore_eos=True),
            condition=conditions[number % len(conditions)],
        )
    return run_to_end(running)


def test_an_engine_with_captured_steps_returns_what_generate_returns(captured: list[int]) -> None:
    received = answers(cuda_graphs=True)
    for number in range(7):
        prompt = (text(2 + 5 * number, seed=number), video(10, seed=number % 2))
        assert received[str(number)].token_ids == generate(prompt, max_new_tokens=3 + number), number
    if DEVICE.type == "cpu":
        assert set(captured) == {1, 2, 4}, "steps that only decode, of several sizes"


def test_an_engine_without_captured_steps_returns_the_same(captured: list[int]) -> None:
    received = answers(cuda_graphs=False)
    assert {name: each.token_ids for name, each in received.items()} == {
        name: each.token_ids for name, each in answers(cuda_graphs=True).items()
    }
    assert received["6"].token_ids == generate((text(32, seed=6), video(10, seed=0)), max_new_tokens=9)


def test_captured_steps_add_the_condition_of_each_row(captured: list[int]) -> None:
    conditions = [None, condition(1), condition(2)]
    received = answers(cuda_graphs=True, conditions=conditions)
    for number in range(7):
        prompt = (text(2 + 5 * number, seed=number), video(10, seed=number % 2))
        expected = generate(prompt, max_new_tokens=3 + number, condition=conditions[number % 3])
        assert received[str(number)].token_ids == expected, number
    if DEVICE.type == "cpu":
        assert set(captured) == {1, 2, 4}

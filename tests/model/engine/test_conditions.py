"""A condition changes the answers of its own sequences only, and its blocks are shared only with equal conditions."""

from dataclasses import replace
from random import Random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.models.llama.modeling_llama import LlamaAttention

from model.engine.conditions import ConditionedPlan, ConditionTable, table_bytes
from model.engine.engine import Engine, EngineConfig, InvalidPrompt, Segment
from model.engine.sampling_params import SamplingParams
from model.engine.sequence import ADDED, Condition
from tests.model.engine.small_llama import (
    CONFIG,
    Bytes,
    Received,
    collect,
    condition,
    generate,
    run_to_end,
    small_llama,
    text,
    video,
)

CONDITIONED = replace(CONFIG, condition_shapes={ADDED: (2, 4, 8)})
GREEDY = SamplingParams(max_tokens=12)
LLAMA = small_llama()
PROMPT: tuple[Segment, ...] = (text(9), video(12), text(6, seed=1))


def engine(config: EngineConfig = CONDITIONED) -> Engine:
    return Engine(LLAMA, Bytes(), config)


def answer(
    running: Engine,
    own: Condition | None,
    *,
    prompt: tuple[Segment, ...] = PROMPT,
    params: SamplingParams = GREEDY,
    salt: str = "",
) -> Received:
    running.add_request("it", prompt, params, cache_salt=salt, condition=own)
    return run_to_end(running)["it"]


class MemoryAttention(LlamaAttention):  # type: ignore[misc]
    """Attention to the sequence, and without weights to the memory of each row's condition, [3, hidden]."""

    def forward(self, hidden_states: torch.Tensor, **rest: object) -> tuple[torch.Tensor, None]:
        out, _ = super().forward(hidden_states, **rest)
        plan = rest["plan"]
        assert isinstance(plan, ConditionedPlan)
        memory = plan.tensors["memory"][plan.condition_slots]  # [rows, 3, hidden]
        weights = torch.einsum("rh,rmh->rm", hidden_states[0], memory).softmax(-1)
        return out + torch.einsum("rm,rmh->rh", weights, memory)[None], None


def test_layers_that_attend_to_a_memory_find_that_of_each_row() -> None:
    def remembering() -> Engine:
        language_model = small_llama()
        for number, layer in enumerate(language_model.model.layers):
            attention = MemoryAttention(language_model.config, layer_idx=number)
            attention.load_state_dict(layer.self_attn.state_dict())
            layer.self_attn = attention
        return Engine(language_model, Bytes(), replace(CONFIG, condition_shapes={"memory": (3, 32)}))

    conditions = [None, *(Condition({"memory": torch.randn(3, 32)}, f"memory {seed}") for seed in range(2))]
    together = remembering()
    for number in range(6):
        together.add_request(f"{number}", PROMPT, GREEDY, condition=conditions[number % 3])
    received = run_to_end(together)
    alone = [answer(remembering(), own).token_ids for own in conditions]
    assert len(set(map(tuple, alone))) == 3
    for number in range(6):
        assert received[f"{number}"].token_ids == alone[number % 3]
    assert alone[0] == generate(PROMPT, max_new_tokens=12), "a row without a condition reads zeros"


@pytest.mark.parametrize("budget", [16, 64])
def test_answers_of_one_batch_are_those_of_transformers_with_the_condition_added(budget: int) -> None:
    running = engine(replace(CONDITIONED, max_num_batched_tokens=budget, max_prefill_beside_decode=3))
    conditions = [None, condition(1), condition(2), condition(1), None]
    for number, own in enumerate(conditions):
        running.add_request(f"{number}", (*PROMPT, text(3, seed=number)), GREEDY, condition=own)
    received = run_to_end(running)
    for number, own in enumerate(conditions):
        expected = generate((*PROMPT, text(3, seed=number)), max_new_tokens=12, condition=own)
        assert received[f"{number}"].token_ids == expected, number
    answers = [generate(PROMPT, max_new_tokens=12, condition=own) for own in (None, condition(1), condition(2))]
    assert len(set(map(tuple, answers))) == 3, "the conditions of this test matter"


def test_blocks_are_shared_under_one_condition_and_never_under_two() -> None:
    warm = engine()
    first = answer(warm, condition(1))
    assert answer(warm, condition(1)).outputs[0].num_cached_tokens == 24
    for other in (condition(2), None):
        assert answer(warm, other).outputs[0].num_cached_tokens == 0, "not even the text before the video"
        assert answer(warm, other).outputs[0].num_cached_tokens == 24
    assert answer(warm, condition(1), salt="rival").outputs[0].num_cached_tokens == 0
    assert answer(warm, condition(1)).token_ids == first.token_ids


def test_beams_keep_the_condition_of_their_search() -> None:
    search = SamplingParams(max_tokens=10, num_beams=3)
    expected = {seed: generate(PROMPT, max_new_tokens=10, num_beams=3, condition=condition(seed)) for seed in (1, 2)}
    assert expected[1] != expected[2]
    for seed, token_ids in expected.items():
        assert answer(engine(), condition(seed), params=search).token_ids == token_ids
    crowded = engine(replace(CONDITIONED, num_blocks=26, max_num_seqs=4))
    for seed in expected:
        crowded.add_request(f"{seed}", PROMPT, search, condition=condition(seed))
    crowded.add_request("plain", PROMPT, search)
    received = run_to_end(crowded)
    assert crowded.num_preemptions > 0
    for seed, token_ids in expected.items():
        assert received[f"{seed}"].token_ids == token_ids
    assert received["plain"].token_ids == answer(engine(CONFIG), None, params=search).token_ids


def test_another_engine_continues_an_answer_under_its_condition() -> None:
    whole = answer(engine(), condition(1)).token_ids
    second = engine()
    second.add_request("it", PROMPT, GREEDY, output_token_ids=whole[:5], condition=condition(1))
    assert run_to_end(second)["it"].token_ids == whole[5:]


@pytest.mark.parametrize(
    ("config", "tensors"),
    [
        (CONFIG, {ADDED: torch.zeros(2, 4, 8)}),
        (CONDITIONED, {}),
        (CONDITIONED, {ADDED: torch.zeros(2, 8, 4)}),
        (CONDITIONED, {ADDED: torch.zeros(2, 4, 8), "memory": torch.zeros(1)}),
    ],
    ids=["no conditions", "missing", "other shape", "unknown"],
)
def test_tensors_that_the_model_does_not_take_are_refused(
    config: EngineConfig, tensors: dict[str, torch.Tensor]
) -> None:
    running = engine(config)
    with pytest.raises(InvalidPrompt, match="The condition has tensors"):
        running.add_request("it", PROMPT, GREEDY, condition=Condition(tensors, "any"))
    assert not running.has_work


def test_a_table_keeps_conditions_until_their_slots_are_needed() -> None:
    config = replace(CONDITIONED, max_num_seqs=2)
    table = ConditionTable(config, dtype=torch.float32, device=torch.device("cpu"))
    one, two, three = (condition(seed) for seed in (1, 2, 3))
    assert table.slots_of([None, None]) == [0, 0]
    assert table.slots_of([one, None, two, one]) == [1, 0, 2, 1]
    assert table.slots_of([condition(1)]) == [1], "an equal identity is the same condition"
    assert table.slots_of([three, one]) == [2, 1], "the one that was not used the longest is replaced"
    assert table.slots_of([two, three]) == [1, 2]
    assert torch.equal(
        table.tensors[ADDED], torch.stack([torch.zeros(2, 4, 8), *(e.tensors[ADDED] for e in (two, three))])
    )


@settings(max_examples=50, deadline=None)
@given(steps=st.lists(st.lists(st.integers(0, 9), max_size=4), max_size=12))
def test_every_row_reads_its_own_condition_after_any_steps(steps: list[list[int]]) -> None:
    config = replace(CONDITIONED, max_num_seqs=4)
    table = ConditionTable(config, dtype=torch.float32, device=torch.device("cpu"))
    place = table.tensors[ADDED].data_ptr()
    for step in steps:
        conditions = [condition(seed) if seed else None for seed in step]
        for slot, own in zip(table.slots_of(conditions), conditions, strict=True):
            expected = torch.zeros(2, 4, 8) if own is None else own.tensors[ADDED]
            assert torch.equal(table.tensors[ADDED][slot], expected)
    assert table.tensors[ADDED].data_ptr() == place, "captured steps read this memory"


def test_the_memory_of_a_table_is_counted() -> None:
    table = ConditionTable(CONDITIONED, dtype=torch.float16, device=torch.device("cpu"))
    assert table_bytes(CONDITIONED, torch.float16) == table.tensors[ADDED].nbytes == 17 * 64 * 2
    assert table_bytes(CONFIG, torch.float16) == 0


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), blocks=st.integers(24, 60), caching=st.booleans())
def test_after_any_actions_every_answer_is_that_of_its_condition_alone(seed: int, blocks: int, caching: bool) -> None:
    random = Random(seed)
    running = engine(
        replace(
            CONDITIONED,
            num_blocks=blocks,
            prefix_caching=caching,
            max_num_seqs=random.choice((3, 6)),
            max_prefill_beside_decode=random.choice((1, 5, 64)),
        )
    )
    asked: dict[str, tuple[tuple[Segment, ...], SamplingParams, Condition | None]] = {}
    received: dict[str, Received] = {}
    for number in range(30):
        action = random.random()
        if action < 0.45:
            own = random.choice((None, *map(condition, range(1, 6))))
            prompt: tuple[Segment, ...]
            prompt = (text(5), video(8, seed=random.randrange(2)), text(random.randrange(1, 20)))
            params = SamplingParams(
                max_tokens=random.randint(1, 20),
                temperature=random.choice((0.0, 0.9)),
                seed=random.randrange(5),
            )
            if random.random() < 0.2:
                params = SamplingParams(max_tokens=8, num_beams=2)
            asked[f"{number}"] = prompt, params, own
            running.add_request(f"{number}", prompt, params, condition=own)
        elif action < 0.55 and asked:
            running.abort(random.choice(list(asked)))
        else:
            collect(running.step(), received)
        running.check()
    while running.has_work:
        collect(running.step(), received)
        running.check()
    for request_id, (prompt, params, own) in asked.items():
        answered = received[request_id]
        expected = answer(engine(), own, prompt=prompt, params=params).token_ids
        if answered.finish_reason == "abort":
            expected = expected[: len(answered.token_ids)]
        assert answered.token_ids == expected

"""Sharing blocks, preemption and caching never change an answer."""

from dataclasses import replace
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.engine.engine import Engine, EngineConfig, Segment, TextSegment
from model.engine.sampling_params import SamplingParams
from tests.model.engine.small_llama import CONFIG, Bytes, Received, alone, collect, run_to_end, small_llama, text, video

Prompt = tuple[Segment, ...]
GREEDY = SamplingParams(max_tokens=12)
NARROW = replace(CONFIG, num_blocks=24)  # exactly one sequence of the maximum length
LLAMA = small_llama()


def engine(config: EngineConfig = CONFIG) -> Engine:
    return Engine(LLAMA, Bytes(), config)


def about(clip: int, question: int = 0) -> Prompt:
    return (text(5), video(12, seed=clip), text(6, seed=question))


def answer(running: Engine, prompt: Prompt, params: SamplingParams = GREEDY, *, salt: str = "") -> Received:
    running.add_request("it", prompt, params, cache_salt=salt)
    return run_to_end(running)["it"]


def test_a_cached_prefix_is_not_computed_again_and_changes_no_token() -> None:
    warm = engine()
    cold = answer(warm, about(1, question=1))
    assert cold.outputs[0].num_cached_tokens == 0
    again = answer(warm, about(1, question=1))
    assert again.outputs[0].num_cached_tokens == 20  # of 23: five full blocks
    other = answer(warm, about(1, question=2))
    assert other.outputs[0].num_cached_tokens == 16  # 5 + 12 in full blocks of four
    assert again.token_ids == cold.token_ids
    assert other.token_ids == alone(about(1, question=2), GREEDY).token_ids != cold.token_ids


def test_of_a_cached_prompt_of_full_blocks_the_last_block_is_computed() -> None:
    warm = engine()
    prompt = (text(16),)
    first = answer(warm, prompt)
    second = answer(warm, prompt)
    assert second.outputs[0].num_cached_tokens == 12
    assert second.token_ids == first.token_ids


def test_the_second_turn_computes_only_its_new_tokens() -> None:
    warm = engine()
    first = answer(warm, about(3), SamplingParams(max_tokens=20))
    history = TextSegment((*text(6).token_ids, *first.token_ids, *text(7, seed=9).token_ids))
    second = answer(warm, (text(5), video(12, seed=3), history))
    known = 5 + 12 + 6 + 20 - 1  # the last token of the answer was never computed
    assert second.outputs[0].num_cached_tokens == known // 4 * 4
    assert second.token_ids == alone((text(5), video(12, seed=3), history), GREEDY).token_ids


def test_another_video_with_the_same_words_shares_only_what_comes_before_it() -> None:
    warm = engine()
    answer(warm, about(1))
    other = answer(warm, about(2))
    assert other.outputs[0].num_cached_tokens == 4
    assert other.token_ids == alone(about(2), GREEDY).token_ids


def test_text_in_other_segments_is_found_in_the_cache() -> None:
    warm = engine()
    whole = text(20)
    answer(warm, (whole,))
    cut = (TextSegment(whole.token_ids[:7]), TextSegment(()), TextSegment(whole.token_ids[7:]))
    assert answer(warm, cut).outputs[0].num_cached_tokens == 16


def test_sixteen_sessions_on_one_video_store_it_once() -> None:
    """Even if they all arrive in the same step."""
    wide = replace(CONFIG, max_num_batched_tokens=1024, max_prefill_beside_decode=1024)
    shared, apart = engine(wide), engine(wide)
    for number in range(16):
        shared.add_request(f"{number}", (video(32, seed=1), text(3, seed=number)), GREEDY)
        apart.add_request(f"{number}", (video(32, seed=number), text(3, seed=number)), GREEDY)
    for each in (shared, apart):
        for _ in range(10):
            each.step()
        each.check()
    assert shared.num_running == apart.num_running == 16
    own = apart.num_held_blocks - 16 * 8
    assert shared.num_held_blocks == 8 + own
    received = run_to_end(shared)
    for number in (0, 7, 15):
        expected = alone((video(32, seed=1), text(3, seed=number)), GREEDY).token_ids
        assert received[f"{number}"].token_ids == expected[-len(received[f"{number}"].token_ids) :]


@pytest.mark.parametrize("prompt", [(text(20),), about(1)], ids=["text", "video"])
def test_blocks_are_shared_only_within_a_salt(prompt: Prompt) -> None:
    warm = engine()
    first = answer(warm, prompt, salt="acme")
    for salt in ("rival", "", "acme "):
        other = answer(warm, prompt, salt=salt)
        assert other.outputs[0].num_cached_tokens == 0
        assert other.token_ids == first.token_ids
    again = answer(warm, prompt, salt="acme")
    assert again.outputs[0].num_cached_tokens == (first.outputs[0].num_prompt_tokens - 1) // 4 * 4
    assert again.token_ids == first.token_ids


def test_searches_and_preempted_answers_share_only_within_their_salt() -> None:
    warm = engine(NARROW)
    answer(warm, about(1), SamplingParams(max_tokens=12, num_beams=2), salt="acme")
    assert answer(warm, about(1), salt="rival").outputs[0].num_cached_tokens == 0
    for number in range(5):
        warm.add_request(f"{number}", about(1), SamplingParams(max_tokens=40, seed=number), cache_salt=f"{number}")
    received = run_to_end(warm)
    assert warm.num_preemptions > 0
    assert all(each.token_ids == alone(about(1), SamplingParams(max_tokens=40)).token_ids for each in received.values())


def test_without_the_prefix_cache_nothing_is_shared() -> None:
    plain = engine(replace(CONFIG, prefix_caching=False))
    first = answer(plain, about(1))
    second = answer(plain, about(1))
    assert second.outputs[0].num_cached_tokens == 0
    assert second.token_ids == first.token_ids


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_preempted_answer_is_the_undisturbed_one(temperature: float) -> None:
    params = SamplingParams(max_tokens=40, temperature=temperature, seed=3)
    narrow = engine(NARROW)
    for number in range(5):
        narrow.add_request(f"{number}", about(number), params)
    received = run_to_end(narrow)
    assert narrow.num_preemptions > 0
    for number in range(5):
        assert received[f"{number}"].token_ids == alone(about(number), params).token_ids
        assert received[f"{number}"].text == alone(about(number), params).text


def test_the_longest_sequence_fits_into_the_smallest_cache() -> None:
    prompt = (text(50),)
    received = answer(engine(NARROW), prompt, SamplingParams(max_tokens=90))
    assert len(received.token_ids) == 46
    assert received.token_ids == alone(prompt, SamplingParams(max_tokens=90)).token_ids


def test_blocks_of_a_failed_answer_are_never_found() -> None:
    rows = video(12).embeddings.clone()
    rows[4, 7] = float("nan")
    broken = replace(video(12), embeddings=rows)
    warm = engine()
    assert answer(warm, (text(4), broken, text(3))).finish_reason == "error"
    mended = answer(warm, (text(4), video(12), text(3)))
    assert mended.outputs[0].num_cached_tokens == 0
    assert mended.token_ids == alone((text(4), video(12), text(3)), GREEDY).token_ids


def test_too_few_blocks_for_one_sequence_are_refused() -> None:
    with pytest.raises(ValueError, match="takes 24 blocks, but there are 23"):
        replace(CONFIG, num_blocks=23)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), blocks=st.integers(24, 60), caching=st.booleans())
def test_after_any_actions_every_answer_is_right_and_no_block_is_lost(seed: int, blocks: int, caching: bool) -> None:
    random = Random(seed)
    beside = random.choice((1, 5, 64))
    running = engine(replace(CONFIG, num_blocks=blocks, prefix_caching=caching, max_prefill_beside_decode=beside))
    asked: dict[str, tuple[Prompt, SamplingParams]] = {}
    received: dict[str, Received] = {}
    for number in range(30):
        action = random.random()
        if action < 0.45:
            more = text(random.randrange(30), seed=random.randrange(2))
            prompt = (*about(random.randrange(3), random.randrange(3)), more)
            params = SamplingParams(
                max_tokens=random.randint(1, 25), temperature=random.choice((0.0, 0.9)), seed=random.randrange(5)
            )
            if random.random() < 0.2:
                params = SamplingParams(max_tokens=8, num_beams=2)
            asked[f"{number}"] = prompt, params
            running.add_request(f"{number}", prompt, params, cache_salt=random.choice(("acme", "rival")))
        elif action < 0.55 and asked:
            running.abort(random.choice(list(asked)))
        else:
            collect(running.step(), received)
        running.check()
    while running.has_work:
        collect(running.step(), received)
        running.check()
    assert running.num_held_blocks == 0
    for request_id, (prompt, params) in asked.items():
        answered = received[request_id]
        undisturbed = engine()
        undisturbed.add_request("alone", prompt, params)
        expected = run_to_end(undisturbed)["alone"].token_ids
        if answered.finish_reason == "abort":
            expected = expected[: len(answered.token_ids)]
        assert answered.token_ids == expected

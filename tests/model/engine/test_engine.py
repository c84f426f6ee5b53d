"""An answer is the same alone, beside other requests, in chunks, and resumed in another engine."""

from dataclasses import replace

import pytest
import torch

from model.engine.engine import (
    DuplicateRequest,
    Engine,
    EngineConfig,
    InvalidPrompt,
    PromptTooLong,
    Segment,
    TextSegment,
    VideoSegment,
)
from model.engine.sampling_params import SamplingParams
from tests.model.engine.small_llama import (
    CONFIG,
    EOS,
    HIDDEN,
    VOCAB,
    Bytes,
    Received,
    alone,
    collect,
    engine,
    generate,
    run_to_end,
    small_llama,
    text,
    video,
)

Prompt = tuple[Segment, ...]


def clip_prompt(seed: int, *, length: int = 9) -> Prompt:
    """Text, a video, text, as the prompt of a model family has them."""
    return (text(length, seed=seed), video(12, seed=seed), text(5, seed=seed + 100))


SAMPLED = SamplingParams(temperature=1.0, top_p=0.95, seed=5, max_tokens=24)


@pytest.mark.parametrize("seed", range(4))
def test_greedy_token_ids_are_those_of_generate(seed: int) -> None:
    prompt = clip_prompt(seed)
    assert alone(prompt, SamplingParams(max_tokens=24)).token_ids == generate(prompt, max_new_tokens=24)


def test_the_text_is_that_of_the_token_ids_at_any_length() -> None:
    busy = engine()
    for limit in range(1, 25):
        busy.add_request(f"{limit}", clip_prompt(0), SamplingParams(max_tokens=limit))
    for request_id, received in run_to_end(busy).items():
        assert len(received.token_ids) == int(request_id)
        assert received.text == bytes(received.token_ids).decode(errors="replace").strip()


@pytest.mark.filterwarnings("ignore:Passing `repetition_penalty` with `inputs_embeds`")
def test_repetition_penalty_is_that_of_generate() -> None:
    prompt = clip_prompt(2)
    penalised = alone(prompt, SamplingParams(max_tokens=30, repetition_penalty=1.8)).token_ids
    assert penalised == generate(prompt, max_new_tokens=30, repetition_penalty=1.8)
    assert penalised != generate(prompt, max_new_tokens=30)


def test_two_videos_in_one_prompt_both_count() -> None:
    prompt = (*clip_prompt(0), *clip_prompt(1))
    ids = alone(prompt, SamplingParams(max_tokens=16)).token_ids
    assert ids == generate(prompt, max_new_tokens=16)
    assert ids != alone((*clip_prompt(0), text(9, seed=1), video(12), text(5, seed=101)), SAMPLED).token_ids[:16]


def test_an_answer_is_the_same_alone_and_in_a_batch_of_mixed_lengths_arrivals_and_aborts() -> None:
    requests: dict[str, tuple[Prompt, SamplingParams]] = {
        f"r{n}": (
            clip_prompt(n, length=1 + 3 * n % 17),
            SamplingParams(max_tokens=5 + 7 * n % 23, temperature=0.9 * (n % 2), seed=n, top_k=40 * (n % 3)),
        )
        for n in range(20)
    }
    busy = engine()
    received: dict[str, Received] = {}
    most = 0
    for number, (request_id, (prompt, params)) in enumerate(requests.items()):
        busy.add_request(request_id, prompt, params)
        if number % 3 == 0:
            collect(busy.step(), received)
        if number in (7, 12):
            assert busy.abort(f"r{number - 1}")
        most = max(most, busy.num_running)
    while busy.has_work:
        collect(busy.step(), received)
        most = max(most, busy.num_running)
    assert most == CONFIG.max_num_seqs
    assert busy.num_held_blocks == 0
    for request_id, (prompt, params) in requests.items():
        expected = alone(prompt, params)
        if received[request_id].finish_reason == "abort":
            length = len(received[request_id].token_ids)
            assert received[request_id].token_ids == expected.token_ids[:length]
        else:
            assert received[request_id].token_ids == expected.token_ids
            assert received[request_id].text == expected.text
    assert {request_id for request_id, each in received.items() if each.finish_reason == "abort"} == {"r6", "r11"}


@pytest.mark.parametrize("budget", [1, 3, 7, 25])
def test_a_chunked_prefill_gives_the_same_answer(budget: int) -> None:
    narrow = replace(CONFIG, max_num_seqs=1, max_num_batched_tokens=budget)
    for params in (SamplingParams(max_tokens=12), SAMPLED):
        assert alone(clip_prompt(3), params, narrow).token_ids == alone(clip_prompt(3), params).token_ids


def test_a_long_prompt_does_not_stall_a_running_stream() -> None:
    shared = engine(replace(CONFIG, max_num_batched_tokens=16))
    shared.add_request("stream", clip_prompt(0, length=1)[:1], SamplingParams(max_tokens=40))
    shared.step()
    shared.add_request("long", (text(80),), SamplingParams(max_tokens=1))
    for _ in range(5):  # 80 tokens in chunks of 15: the sixth step is the first to answer
        assert [output.request_id for output in shared.step()] == ["stream"]
    assert [output.request_id for output in shared.step()] == ["stream", "long"]


def test_the_seed_determines_the_answer() -> None:
    received = {seed: alone(clip_prompt(0), replace(SAMPLED, seed=seed)).token_ids for seed in range(6)}
    assert received[0] == alone(clip_prompt(0), replace(SAMPLED, seed=0)).token_ids
    assert len({tuple(ids) for ids in received.values()}) == 6


@pytest.mark.parametrize("params", [SamplingParams(max_tokens=24), replace(SAMPLED, stop=("#", "\x05\x06"))])
@pytest.mark.parametrize("seed", range(3))
def test_an_answer_resumed_after_any_of_its_outputs_is_the_same(params: SamplingParams, seed: int) -> None:
    whole = alone(clip_prompt(seed), params)
    for cut in range(len(whole.outputs) + 1):
        second = engine()
        second.add_request("b", clip_prompt(seed), params, output_token_ids=whole.token_ids[:cut])
        rest = run_to_end(second)["b"]
        assert rest.token_ids == whole.token_ids[cut:]
        assert rest.text == "".join(output.text for output in whole.outputs[cut:])
        assert rest.finish_reason == whole.finish_reason
        assert rest.outputs[-1].num_output_tokens == len(whole.token_ids)


def test_tokens_that_complete_an_answer_finish_it_in_the_next_step() -> None:
    resumed = engine()
    first, second = b"so"
    resumed.add_request("eos", clip_prompt(0), SamplingParams(), output_token_ids=[first, EOS])
    resumed.add_request("stop", clip_prompt(0), SamplingParams(stop=("so",)), output_token_ids=[first, second])
    resumed.add_request("length", clip_prompt(0), SamplingParams(max_tokens=2), output_token_ids=[1, 2])
    outputs = resumed.step()
    assert [(o.request_id, o.finish_reason) for o in outputs] == [
        ("eos", "stop"),
        ("stop", "stop"),
        ("length", "length"),
    ]
    assert all(output.token_ids == () and output.text == "" for output in outputs)
    assert not resumed.has_work


def ascii_pair(limit: int) -> tuple[Prompt, list[int], int]:
    """A prompt, its greedy answer, and an index at which a pair of ASCII characters first occurs in the answer."""
    for seed in range(50):
        prompt = clip_prompt(seed)
        ids = alone(prompt, SamplingParams(max_tokens=limit)).token_ids
        for at in range(2, len(ids) - 1):
            pair = ids[at : at + 2]
            if all(33 <= token < 127 for token in pair) and bytes(pair) not in bytes(ids[: at + 1]):
                return prompt, ids, at
    raise AssertionError("no answer has two ASCII characters in a row")


def test_an_answer_ends_before_its_stop_string() -> None:
    prompt, ids, at = ascii_pair(24)
    received = alone(prompt, SamplingParams(max_tokens=24, stop=(bytes(ids[at : at + 2]).decode(), "never sampled")))
    assert received.finish_reason == "stop"
    assert received.token_ids == ids[: at + 2]
    assert received.text == bytes(ids[:at]).decode(errors="replace").strip()


def test_the_end_of_sequence_token_ends_an_answer_and_has_no_text() -> None:
    prompt, ids, at = ascii_pair(24)

    class EndsAtThatToken(Bytes):
        eos_id = ids[at]

    ending = Engine(small_llama(), EndsAtThatToken(), CONFIG)
    ending.add_request("a", prompt, SamplingParams(max_tokens=24))
    received = run_to_end(ending)["a"]
    first = ids.index(ids[at])
    assert (received.finish_reason, received.token_ids) == ("stop", ids[: first + 1])
    assert received.text == bytes(ids[:first]).decode(errors="replace").strip()


def test_an_abort_frees_the_cache_at_the_next_step_and_is_reported() -> None:
    busy = engine(replace(CONFIG, max_num_seqs=2))
    for request_id in ("a", "b", "waiting"):
        busy.add_request(request_id, clip_prompt(0), SamplingParams(max_tokens=50))
    busy.step()
    busy.step()
    assert (busy.num_running, busy.num_waiting, busy.num_held_blocks) == (2, 1, 6 + 2)
    assert busy.abort("a")
    assert busy.abort("waiting")
    assert not busy.abort("unknown")

    outputs = {output.request_id: output for output in busy.step()}
    assert (outputs["a"].finish_reason, outputs["a"].num_output_tokens) == ("abort", 2)
    assert (outputs["waiting"].finish_reason, outputs["waiting"].num_output_tokens) == ("abort", 0)
    assert outputs["b"].finish_reason is None
    assert (busy.num_running, busy.num_waiting, busy.num_held_blocks) == (1, 0, 6 + 1)
    assert not busy.abort("a")

    busy.abort("b")
    busy.step()
    assert busy.num_held_blocks == 0
    assert not busy.has_work


def test_a_request_with_features_that_are_not_finite_fails_alone() -> None:
    rows = video(12).embeddings.clone()
    rows[4, 7] = torch.nan
    broken = (text(3), VideoSegment(rows, "broken"), text(3))
    busy = engine()
    busy.add_request("before", clip_prompt(1), SAMPLED)
    busy.add_request("broken", broken, SAMPLED)
    busy.add_request("after", clip_prompt(2), SAMPLED)
    received = run_to_end(busy)
    assert (received["broken"].finish_reason, received["broken"].token_ids) == ("error", [])
    assert received["before"].token_ids == alone(clip_prompt(1), SAMPLED).token_ids
    assert received["after"].token_ids == alone(clip_prompt(2), SAMPLED).token_ids


def test_a_prompt_that_is_too_long_is_refused() -> None:
    full = engine()
    full.add_request("fits", (text(95),), SamplingParams(max_tokens=9))
    with pytest.raises(PromptTooLong) as refused:
        full.add_request("too long", (text(50), video(46)), SamplingParams())
    assert (refused.value.num_prompt_tokens, refused.value.max_model_len) == (96, 96)
    received = run_to_end(full)
    assert set(received) == {"fits"}
    assert (received["fits"].finish_reason, len(received["fits"].token_ids)) == ("length", 1)


@pytest.mark.parametrize(("max_tokens", "expected"), [(7, 7), (80, 70)])
def test_an_answer_ends_by_length_at_max_tokens_or_max_model_len(max_tokens: int, expected: int) -> None:
    received = alone(clip_prompt(0), SamplingParams(max_tokens=max_tokens))
    assert received.finish_reason == "length"
    assert received.outputs[-1].num_output_tokens == len(received.token_ids) == expected
    assert {output.num_prompt_tokens for output in received.outputs} == {26}


@pytest.mark.parametrize(
    "prompt",
    [
        (),
        (TextSegment(()),),
        (TextSegment((1, VOCAB)),),
        (TextSegment((-1,)),),
        (VideoSegment(torch.zeros(4, HIDDEN + 1), "wide"),),
        (VideoSegment(torch.zeros(HIDDEN), "flat"),),
    ],
)
def test_a_prompt_that_does_not_fit_the_model_is_refused(prompt: Prompt) -> None:
    strict = engine()
    with pytest.raises(InvalidPrompt):
        strict.add_request("a", prompt, SamplingParams())
    with pytest.raises(InvalidPrompt):
        strict.add_request("a", clip_prompt(0), SamplingParams(), output_token_ids=[VOCAB])
    assert not strict.has_work


def test_an_id_can_be_used_again_when_its_request_has_finished() -> None:
    busy = engine()
    busy.add_request("a", clip_prompt(0), SamplingParams(max_tokens=2))
    with pytest.raises(DuplicateRequest):
        busy.add_request("a", clip_prompt(1), SamplingParams())
    first = run_to_end(busy)["a"].token_ids
    busy.add_request("a", clip_prompt(0), SamplingParams(max_tokens=2))
    assert run_to_end(busy)["a"].token_ids == first


def test_positions_the_model_does_not_have_are_refused() -> None:
    with pytest.raises(ValueError, match="has 128 positions"):
        engine(EngineConfig(max_model_len=129))


def test_a_model_in_bfloat16_answers_too() -> None:
    half = Engine(small_llama().to(torch.bfloat16), Bytes(), CONFIG)
    half.add_request("a", clip_prompt(0), SAMPLED)
    assert len(run_to_end(half)["a"].token_ids) == len(alone(clip_prompt(0), SAMPLED).token_ids)

"""The engine's promises: an answer is the same alone, in any company, in chunks, and after a crash."""

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
    Told,
    alone,
    collect,
    engine,
    generate,
    run_out,
    small_llama,
    text,
    video,
)

Prompt = tuple[Segment, ...]


def clip_prompt(seed: int, *, length: int = 9) -> Prompt:
    """Text, a video, text, as a family's template makes it."""
    return (text(length, seed=seed), video(12, seed=seed), text(5, seed=seed + 100))


SAMPLED = SamplingParams(temperature=1.0, top_p=0.95, seed=5, max_tokens=24)


@pytest.mark.parametrize("seed", range(4))
def test_greedy_ids_are_those_of_generate(seed: int) -> None:
    prompt = clip_prompt(seed)
    assert alone(prompt, SamplingParams(max_tokens=24)).token_ids == generate(prompt, max_new_tokens=24)


def test_the_text_is_that_of_the_ids_wherever_the_answer_is_cut_off() -> None:
    crowd = engine()
    for limit in range(1, 25):
        crowd.add_request(f"{limit}", clip_prompt(0), SamplingParams(max_tokens=limit))
    for request_id, told in run_out(crowd).items():
        assert len(told.token_ids) == int(request_id)
        assert told.text == bytes(told.token_ids).decode(errors="replace").strip()


@pytest.mark.filterwarnings("ignore:Passing `repetition_penalty` with `inputs_embeds`")
def test_repetition_penalty_is_that_of_generate() -> None:
    prompt = clip_prompt(2)
    penalised = alone(prompt, SamplingParams(max_tokens=30, repetition_penalty=1.8)).token_ids
    assert penalised == generate(prompt, max_new_tokens=30, repetition_penalty=1.8)
    assert penalised != generate(prompt, max_new_tokens=30)


def test_two_videos_in_one_prompt_are_both_seen() -> None:
    prompt = (*clip_prompt(0), *clip_prompt(1))
    ids = alone(prompt, SamplingParams(max_tokens=16)).token_ids
    assert ids == generate(prompt, max_new_tokens=16)
    assert ids != alone((*clip_prompt(0), text(9, seed=1), video(12), text(5, seed=101)), SAMPLED).token_ids[:16]


def test_alone_is_as_in_a_batch_of_mixed_lengths_arrivals_and_aborts() -> None:
    requests: dict[str, tuple[Prompt, SamplingParams]] = {
        f"r{n}": (
            clip_prompt(n, length=1 + 3 * n % 17),
            SamplingParams(max_tokens=5 + 7 * n % 23, temperature=0.9 * (n % 2), seed=n, top_k=40 * (n % 3)),
        )
        for n in range(20)
    }
    crowd = engine()
    told: dict[str, Told] = {}
    most = 0
    for number, (request_id, (prompt, params)) in enumerate(requests.items()):
        crowd.add_request(request_id, prompt, params)
        if number % 3 == 0:
            collect(crowd.step(), told)
        if number in (7, 12):
            assert crowd.abort(f"r{number - 1}")
        most = max(most, crowd.num_running)
    while crowd.has_work:
        collect(crowd.step(), told)
        most = max(most, crowd.num_running)
    assert most == CONFIG.max_num_seqs
    assert crowd.num_held_blocks == 0
    for request_id, (prompt, params) in requests.items():
        expected = alone(prompt, params)
        if told[request_id].finish_reason == "abort":
            length = len(told[request_id].token_ids)
            assert told[request_id].token_ids == expected.token_ids[:length]
        else:
            assert told[request_id].token_ids == expected.token_ids
            assert told[request_id].text == expected.text
    assert {request_id for request_id, each in told.items() if each.finish_reason == "abort"} == {"r6", "r11"}


@pytest.mark.parametrize("budget", [1, 3, 7, 25])
def test_a_chunked_prefill_is_a_whole_prefill(budget: int) -> None:
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


def test_the_seed_makes_the_answer() -> None:
    told = {seed: alone(clip_prompt(0), replace(SAMPLED, seed=seed)).token_ids for seed in range(6)}
    assert told[0] == alone(clip_prompt(0), replace(SAMPLED, seed=0)).token_ids
    assert len({tuple(ids) for ids in told.values()}) == 6


@pytest.mark.parametrize("params", [SamplingParams(max_tokens=24), replace(SAMPLED, stop=("#", "\x05\x06"))])
@pytest.mark.parametrize("seed", range(3))
def test_an_answer_goes_on_after_any_of_its_outputs_as_if_nothing_had_happened(
    params: SamplingParams, seed: int
) -> None:
    undisturbed = alone(clip_prompt(seed), params)
    for cut in range(len(undisturbed.outputs) + 1):
        second = engine()
        second.add_request("b", clip_prompt(seed), params, output_token_ids=undisturbed.token_ids[:cut])
        rest = run_out(second)["b"]
        assert rest.token_ids == undisturbed.token_ids[cut:]
        assert rest.text == "".join(output.text for output in undisturbed.outputs[cut:])
        assert rest.finish_reason == undisturbed.finish_reason
        assert rest.outputs[-1].num_output_tokens == len(undisturbed.token_ids)


def test_ids_that_complete_an_answer_are_reported_as_finished_by_the_next_step() -> None:
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


def sayable(limit: int) -> tuple[Prompt, list[int], int]:
    """A prompt, its greedy answer, and an index there at which two ASCII characters new to it begin."""
    for seed in range(50):
        prompt = clip_prompt(seed)
        ids = alone(prompt, SamplingParams(max_tokens=limit)).token_ids
        for at in range(2, len(ids) - 1):
            pair = ids[at : at + 2]
            if all(33 <= token < 127 for token in pair) and bytes(pair) not in bytes(ids[: at + 1]):
                return prompt, ids, at
    raise AssertionError("no answer has two ASCII characters in a row")


def test_an_answer_ends_before_its_stop_string() -> None:
    prompt, ids, at = sayable(24)
    told = alone(prompt, SamplingParams(max_tokens=24, stop=(bytes(ids[at : at + 2]).decode(), "never said")))
    assert told.finish_reason == "stop"
    assert told.token_ids == ids[: at + 2]
    assert told.text == bytes(ids[:at]).decode(errors="replace").strip()


def test_the_end_of_sequence_token_ends_an_answer_and_is_no_text() -> None:
    prompt, ids, at = sayable(24)

    class EndsAtThatToken(Bytes):
        eos_id = ids[at]

    ending = Engine(small_llama(), EndsAtThatToken(), CONFIG)
    ending.add_request("a", prompt, SamplingParams(max_tokens=24))
    told = run_out(ending)["a"]
    first = ids.index(ids[at])
    assert (told.finish_reason, told.token_ids) == ("stop", ids[: first + 1])
    assert told.text == bytes(ids[:first]).decode(errors="replace").strip()


def test_an_abort_frees_the_cache_at_the_next_step_and_is_reported() -> None:
    crowd = engine(replace(CONFIG, max_num_seqs=2))
    for request_id in ("a", "b", "waiting"):
        crowd.add_request(request_id, clip_prompt(0), SamplingParams(max_tokens=50))
    crowd.step()
    crowd.step()
    assert (crowd.num_running, crowd.num_waiting, crowd.num_held_blocks) == (2, 1, 6 + 2)
    assert crowd.abort("a")
    assert crowd.abort("waiting")
    assert not crowd.abort("nobody")

    outputs = {output.request_id: output for output in crowd.step()}
    assert (outputs["a"].finish_reason, outputs["a"].num_output_tokens) == ("abort", 2)
    assert (outputs["waiting"].finish_reason, outputs["waiting"].num_output_tokens) == ("abort", 0)
    assert outputs["b"].finish_reason is None
    assert (crowd.num_running, crowd.num_waiting, crowd.num_held_blocks) == (1, 0, 6 + 1)
    assert not crowd.abort("a")

    crowd.abort("b")
    crowd.step()
    assert crowd.num_held_blocks == 0
    assert not crowd.has_work


def test_a_request_with_poisoned_features_fails_alone() -> None:
    rows = video(12).embeddings.clone()
    rows[4, 7] = torch.nan
    poisoned = (text(3), VideoSegment(rows, "broken"), text(3))
    crowd = engine()
    crowd.add_request("before", clip_prompt(1), SAMPLED)
    crowd.add_request("poisoned", poisoned, SAMPLED)
    crowd.add_request("after", clip_prompt(2), SAMPLED)
    told = run_out(crowd)
    assert (told["poisoned"].finish_reason, told["poisoned"].token_ids) == ("error", [])
    assert told["before"].token_ids == alone(clip_prompt(1), SAMPLED).token_ids
    assert told["after"].token_ids == alone(clip_prompt(2), SAMPLED).token_ids


def test_a_prompt_that_is_too_long_is_refused_at_the_door() -> None:
    full = engine()
    full.add_request("fits", (text(95),), SamplingParams(max_tokens=9))
    with pytest.raises(PromptTooLong) as refused:
        full.add_request("too long", (text(50), video(46)), SamplingParams())
    assert (refused.value.num_prompt_tokens, refused.value.max_model_len) == (96, 96)
    told = run_out(full)
    assert set(told) == {"fits"}
    assert (told["fits"].finish_reason, len(told["fits"].token_ids)) == ("length", 1)


@pytest.mark.parametrize(("max_tokens", "expected"), [(7, 7), (80, 70)])
def test_an_answer_ends_by_length_at_max_tokens_or_max_model_len(max_tokens: int, expected: int) -> None:
    told = alone(clip_prompt(0), SamplingParams(max_tokens=max_tokens))
    assert told.finish_reason == "length"
    assert told.outputs[-1].num_output_tokens == len(told.token_ids) == expected
    assert {output.num_prompt_tokens for output in told.outputs} == {26}


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
def test_a_prompt_the_model_cannot_take_is_refused_at_the_door(prompt: Prompt) -> None:
    strict = engine()
    with pytest.raises(InvalidPrompt):
        strict.add_request("a", prompt, SamplingParams())
    with pytest.raises(InvalidPrompt):
        strict.add_request("a", clip_prompt(0), SamplingParams(), output_token_ids=[VOCAB])
    assert not strict.has_work


def test_an_id_is_taken_until_its_request_has_finished() -> None:
    busy = engine()
    busy.add_request("a", clip_prompt(0), SamplingParams(max_tokens=2))
    with pytest.raises(DuplicateRequest):
        busy.add_request("a", clip_prompt(1), SamplingParams())
    first = run_out(busy)["a"].token_ids
    busy.add_request("a", clip_prompt(0), SamplingParams(max_tokens=2))
    assert run_out(busy)["a"].token_ids == first


def test_positions_the_model_does_not_have_are_refused() -> None:
    with pytest.raises(ValueError, match="has 128 positions"):
        engine(EngineConfig(max_model_len=129))


def test_half_precision_answers_too() -> None:
    half = Engine(small_llama().to(torch.bfloat16), Bytes(), CONFIG)
    half.add_request("a", clip_prompt(0), SAMPLED)
    assert len(run_out(half)["a"].token_ids) == len(alone(clip_prompt(0), SAMPLED).token_ids)

"""Beam search returns what transformers' `generate` returns, beside other requests and with few blocks."""

from dataclasses import replace

import pytest
import torch

from model.engine.answer import Transcript
from model.engine.beam_search import BeamSearch
from model.engine.detokenizer import Detokenizer
from model.engine.engine import Engine, Segment
from model.engine.sampler import NextToken
from model.engine.sampling_params import InvalidSampling, SamplingParams
from model.engine.sequence import Sequence
from tests.model.engine.small_llama import CONFIG, EOS, Bytes, Received, collect, run_to_end, small_llama, text, video

Prompt = tuple[Segment, ...]
LLAMA = small_llama()
WIDE = replace(CONFIG, max_num_seqs=32)


def prompt(seed: int) -> Prompt:
    return (text(5, seed=seed), video(9, seed=seed), text(6, seed=seed + 50))


def reference(asked: Prompt, params: SamplingParams, *, eos: int = EOS) -> list[int]:
    """The ids of transformers' own beam search."""
    language_model = small_llama()
    embed = language_model.get_input_embeddings()
    rows = [embed(torch.tensor(each.token_ids)) if hasattr(each, "token_ids") else each.embeddings for each in asked]
    embeds = torch.cat(rows)[None]
    ids: list[int] = language_model.generate(
        inputs_embeds=embeds,
        attention_mask=torch.ones(embeds.shape[:2], dtype=torch.long),
        max_new_tokens=params.max_tokens,
        num_beams=params.num_beams,
        length_penalty=params.length_penalty,
        do_sample=False,
        eos_token_id=eos,
        pad_token_id=EOS,
    )[0].tolist()
    return ids[: ids.index(eos) + 1] if eos in ids else ids


def answer(engine: Engine, asked: Prompt, params: SamplingParams) -> Received:
    engine.add_request("it", asked, params)
    return run_to_end(engine)["it"]


@pytest.mark.parametrize("num_beams", [2, 3, 5])
@pytest.mark.parametrize("seed", range(4))
def test_token_ids_are_those_of_generate(seed: int, num_beams: int) -> None:
    params = SamplingParams(max_tokens=14, num_beams=num_beams)
    received = answer(Engine(LLAMA, Bytes(), WIDE), prompt(seed), params)
    assert received.token_ids == reference(prompt(seed), params)
    assert received.text == bytes(received.token_ids).decode(errors="replace").strip()
    assert [output.text for output in received.outputs[:-1]] == []


@pytest.mark.parametrize("length_penalty", [-1.0, 0.0, 1.0, 3.0])
def test_finished_answers_compete_by_score_and_length_penalty(length_penalty: float) -> None:
    """Each token of an answer in turn becomes the end-of-sequence token, so that answers of many lengths compete."""
    params = SamplingParams(max_tokens=12, num_beams=4, length_penalty=length_penalty)
    lengths = set()
    for eos in sorted(set(answer(Engine(LLAMA, Bytes(), WIDE), prompt(1), params).token_ids)):

        class Ends(Bytes):
            eos_id = eos

        received = answer(Engine(LLAMA, Ends(), WIDE), prompt(1), params)
        assert received.token_ids == reference(prompt(1), params, eos=eos)
        assert received.finish_reason == ("stop" if received.token_ids[-1] == eos else "length")
        lengths.add(len(received.token_ids))
    assert length_penalty > 1 or len(lengths) > 1


def test_a_stop_string_ends_a_beam() -> None:
    params = SamplingParams(max_tokens=14, num_beams=3)
    free = answer(Engine(LLAMA, Bytes(), WIDE), prompt(2), params)
    stop = next(free.text[at] for at in range(3, len(free.text)) if free.text[at] not in free.text[:at])
    received = answer(Engine(LLAMA, Bytes(), WIDE), prompt(2), replace(params, stop=(stop,)))
    assert stop not in received.text


@pytest.mark.parametrize("num_blocks", [24, 31, 80])
def test_searches_beside_other_requests_and_with_few_blocks_find_the_same(num_blocks: int) -> None:
    busy = Engine(LLAMA, Bytes(), replace(CONFIG, max_num_seqs=7, num_blocks=num_blocks))
    params = SamplingParams(max_tokens=14, num_beams=3)
    greedy = SamplingParams(max_tokens=20)
    for seed in range(4):
        busy.add_request(f"search {seed}", prompt(seed), params)
        busy.add_request(f"greedy {seed}", prompt(seed), greedy)
    received: dict[str, Received] = {}
    while busy.has_work:
        collect(busy.step(), received)
        busy.check()
    assert busy.num_held_blocks == 0
    assert (busy.num_preemptions > 0) == (num_blocks < 80)
    for seed in range(4):
        assert received[f"search {seed}"].token_ids == reference(prompt(seed), params)
        assert (
            received[f"greedy {seed}"].token_ids
            == answer(Engine(LLAMA, Bytes(), CONFIG), prompt(seed), greedy).token_ids
        )


def test_beams_share_the_blocks_of_their_common_prefix() -> None:
    engine = Engine(LLAMA, Bytes(), WIDE)
    engine.add_request("it", prompt(0), SamplingParams(max_tokens=14, num_beams=5))
    for _ in range(6):
        engine.step()
        engine.check()
    assert engine.num_running == 5
    # The prompt of 20 tokens is in five shared blocks; the five tokens of each answer take at most two blocks.
    assert engine.num_held_blocks <= 5 + 5 * 2


def test_an_abort_frees_all_beams_at_the_next_step_and_is_reported_once() -> None:
    engine = Engine(LLAMA, Bytes(), WIDE)
    engine.add_request("it", prompt(0), SamplingParams(max_tokens=40, num_beams=4))
    for _ in range(5):
        assert engine.step() == []
    assert engine.abort("it")
    (output,) = engine.step()
    assert (output.finish_reason, output.token_ids, output.num_output_tokens) == ("abort", (), 0)
    assert engine.num_held_blocks == 0
    assert not engine.has_work


def test_a_search_on_features_that_are_not_finite_fails_alone() -> None:
    rows = video(9).embeddings.clone()
    rows[0, 0] = torch.nan
    engine = Engine(LLAMA, Bytes(), WIDE)
    engine.add_request("bad", (text(3), replace(video(9), embeddings=rows)), SamplingParams(num_beams=3))
    engine.add_request("good", prompt(0), SamplingParams(max_tokens=14, num_beams=3))
    received = run_to_end(engine)
    assert (received["bad"].finish_reason, received["bad"].token_ids) == ("error", [])
    assert received["good"].token_ids == reference(prompt(0), SamplingParams(max_tokens=14, num_beams=3))


def test_beam_search_does_not_sample() -> None:
    with pytest.raises(InvalidSampling, match="neither samples"):
        SamplingParams(num_beams=2, temperature=0.5)


def likely(*token_ids: int, gap: float = 10.0) -> NextToken:
    """Logits with these tokens ahead of all others, each `gap` ahead of the next."""
    logits = torch.zeros(1, 258)
    for place, token_id in enumerate(token_ids):
        logits[0, token_id] = 50.0 - gap * place
    return NextToken(token_ids[0], None, logits, 0)


@pytest.mark.parametrize(
    ("logits", "kept"), [(likely(67, 69, gap=5.0), [0, 0]), (likely(67), [0, 1])], ids=["ended", "continued"]
)
def test_logits_of_a_beam_that_was_computed_again_too_late_are_not_used(logits: NextToken, kept: list[int]) -> None:
    """The second beam has its logits, is preempted, and is computed again in the step that gives the first its own."""
    params = SamplingParams(num_beams=2)
    first = Sequence(request_id="it", prompt=(text(4),), params=params, max_output_tokens=9, num_computed_tokens=4)
    search = BeamSearch(first, Transcript(Detokenizer(Bytes(), ()), eos_id=EOS, max_tokens=9))
    begun = search.take(first, likely(65, 66))
    assert begun is not None and [token_id for _, token_id in begun.continuations] == [65, 66]
    search.sequences = beams = [first, first.fork()]
    for beam, token_id in zip(beams, (65, 66), strict=True):
        beam.output_token_ids.append(token_id)
        beam.num_computed_tokens = 5
    assert search.take(beams[1], likely(68)) is None
    update = search.take(beams[0], logits)
    assert update is not None and [beams.index(parent) for parent, _ in update.continuations] == kept
    search.sequences = [beams[0], beams[1] if 1 in kept else beams[0].fork()]
    for beam, (_, token_id) in zip(search.sequences, update.continuations, strict=True):
        beam.output_token_ids.append(token_id)
    assert search.take(beams[1], likely(68)) is None, "as before, but the search is one token further"
    assert all(beam.logits is None for beam in search._beams)

"""Tokens are drawn from the distribution of transformers' processors, one sequence independently of the others."""

import pytest
import torch
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from model.engine import sampler
from model.engine.sampler import distribution, explain, penalise, sample, uniform
from model.engine.sampling_params import SamplingParams
from model.engine.sequence import Sequence, TextSegment

VOCAB = 50


def logits_of(num_seqs: int, *, seed: int = 0) -> torch.Tensor:
    return torch.randn(num_seqs, VOCAB, generator=torch.Generator().manual_seed(seed)) * 2


def sequence(params: SamplingParams, output_token_ids: list[int] | None = None) -> Sequence:
    return Sequence(
        request_id="a",
        prompt=(TextSegment((1, 2)),),
        params=params,
        max_output_tokens=99,
        output_token_ids=output_token_ids or [],
    )


MIXED = [
    SamplingParams(),
    SamplingParams(temperature=0.7, seed=1),
    SamplingParams(temperature=1.0, top_k=5, seed=2),
    SamplingParams(temperature=1.3, top_p=0.6, seed=3),
    SamplingParams(temperature=2.0, top_k=20, top_p=0.8, seed=4),
    SamplingParams(repetition_penalty=3.0),
    SamplingParams(temperature=1.0, top_k=9, top_p=0.9, repetition_penalty=0.5, seed=5),
    SamplingParams(temperature=5e-324),
    SamplingParams(temperature=1.0, top_k=VOCAB + 1, seed=6),
    SamplingParams(temperature=1.0, min_p=0.2, seed=7),
    SamplingParams(temperature=0.8, top_p=0.9, min_p=0.1, seed=8),
    SamplingParams(temperature=1.0, presence_penalty=1.5, frequency_penalty=-0.7, seed=9),
]


def reference(logits: torch.Tensor, each: Sequence) -> torch.Tensor:
    """Probabilities [vocab] by transformers' processors, one row at a time."""
    params = each.params
    processors = LogitsProcessorList([RepetitionPenaltyLogitsProcessor(params.repetition_penalty)])
    processors.append(TemperatureLogitsWarper(params.temperature))
    if params.top_k:
        processors.append(TopKLogitsWarper(params.top_k))
    processors.append(TopPLogitsWarper(params.top_p))
    if params.min_p:
        processors.append(MinPLogitsWarper(params.min_p))
    output_token_ids = torch.tensor([each.output_token_ids])
    lost = logits.clone()
    for token in set(each.output_token_ids):
        lost[token] -= params.presence_penalty + params.frequency_penalty * each.output_token_ids.count(token)
    probabilities: torch.Tensor = processors(output_token_ids, lost[None])[0].softmax(dim=-1)
    return probabilities


@pytest.mark.parametrize("few", [1, 4, 256])
def test_distributions_are_those_of_transformers_processors_row_by_row(
    few: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For any number of likeliest tokens that are sorted first."""
    monkeypatch.setattr(sampler, "_FEW", few)
    sequences = [sequence(p, [3, 9, 9, 40]) for p in MIXED if p.temperature > 1e-3]
    logits = logits_of(len(sequences))
    ours = distribution(penalise(logits, sequences), [each.params for each in sequences])
    for row, each in enumerate(sequences):
        torch.testing.assert_close(ours[row].float(), reference(logits[row], each))


def test_a_sequence_gets_the_same_token_in_a_batch_and_alone() -> None:
    sequences = [sequence(params, [3, 9]) for params in MIXED]
    logits = logits_of(len(sequences))
    together = sample(logits, sequences)
    assert together == [sample(logits[row : row + 1], [each])[0] for row, each in enumerate(sequences)]
    assert sample(logits.flip(0), sequences[::-1]) == together[::-1]


def test_greedy_takes_the_largest_and_so_does_the_coldest_temperature() -> None:
    logits = logits_of(2)
    cold = [sequence(SamplingParams()), sequence(SamplingParams(temperature=5e-324))]
    assert sample(logits, cold) == logits.argmax(dim=-1).tolist()


def test_draws_follow_the_distribution() -> None:
    params = SamplingParams(temperature=1.0, top_p=0.9, seed=11)
    logits = logits_of(1)
    expected = distribution(logits, [params])[0]
    num_draws = 4000
    output_token_ids = [sequence(params, [0] * position) for position in range(num_draws)]
    drawn = sample(logits.expand(num_draws, -1), output_token_ids)
    counts = torch.bincount(torch.tensor(drawn), minlength=VOCAB)
    assert int(counts[expected == 0].sum()) == 0
    # Five standard deviations of each count; the numbers are fixed, so the test is deterministic.
    spread = (num_draws * expected * (1 - expected)).sqrt()
    assert bool(((counts - num_draws * expected).abs() <= 5 * spread + 1).all())


def test_random_numbers_depend_on_seed_and_position_and_fill_the_unit_interval() -> None:
    numbers = torch.tensor([[uniform(seed, position) for position in range(200)] for seed in range(50)])
    assert len(set(numbers.flatten().tolist())) > 0.99 * numbers.numel()
    assert 0 <= float(numbers.min()) < 0.01
    assert 0.99 < float(numbers.max()) < 1
    assert abs(float(numbers.mean()) - 0.5) < 0.01
    correlation = torch.corrcoef(numbers)
    assert float((correlation - torch.eye(50)).abs().max()) < 0.4


@pytest.mark.parametrize("wrong", [torch.nan, torch.inf, -torch.inf])
def test_logits_that_are_not_finite_give_no_token_and_do_not_change_others(wrong: float) -> None:
    sequences = [sequence(params, [3, 9]) for params in MIXED]
    logits = logits_of(len(sequences))
    sound = sample(logits, sequences)
    for row in range(len(sequences)):
        broken = logits.clone()
        broken[row, 3] = wrong
        assert sample(broken, sequences) == [None if r == row else token for r, token in enumerate(sound)]


def test_of_equal_logits_the_lower_ids_are_kept() -> None:
    level = torch.zeros(1, VOCAB)
    for params in (SamplingParams(temperature=1, top_k=7), SamplingParams(temperature=1, top_p=6.5 / VOCAB)):
        assert distribution(level, [params])[0].nonzero().flatten().tolist() == list(range(7))


def test_logprobs_are_those_of_the_model_without_temperature_and_penalties() -> None:
    asking = SamplingParams(temperature=2.0, top_k=3, repetition_penalty=3.0, logprobs=2, seed=1)
    sequences = [sequence(asking, [3, 9]), sequence(SamplingParams()), sequence(SamplingParams(logprobs=0))]
    logits = logits_of(3)
    tokens = sample(logits, sequences)
    asked, silent, alone = explain(logits, sequences, tokens)
    assert silent is None
    assert asked is not None and alone is not None
    expected = logits.log_softmax(-1)
    assert (asked.token_id, alone.token_id) == (tokens[0], tokens[2])
    assert asked.logprob == pytest.approx(float(expected[0, asked.token_id]))
    assert [token for token, _ in asked.top] == expected[0].topk(2).indices.tolist()
    assert [value for _, value in asked.top] == pytest.approx(expected[0].topk(2).values.tolist())
    assert alone.top == ()
    assert explain(logits, sequences, [None, None, None]) == [None, None, None]

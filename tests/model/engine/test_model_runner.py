"""Chunks, packs and neighbours change nothing about a sequence's logits."""

import torch

from model.engine.model_runner import ModelRunner
from model.engine.sampling_params import SamplingParams
from model.engine.scheduler import Chunk
from model.engine.sequence import Sequence
from tests.model.engine.small_llama import VOCAB, small_llama, text, video


def sequence(request_id: str, *, seed: int) -> Sequence:
    return Sequence(
        request_id=request_id,
        prompt=(text(7, seed=seed), video(10, seed=seed), text(6, seed=seed + 1)),
        params=SamplingParams(),
        max_output_tokens=9,
    )


def chunk(each: Sequence, start: int, end: int) -> Chunk:
    return Chunk(each, start, end, sampled=end == each.num_tokens)


def test_the_logits_are_those_of_the_untouched_model() -> None:
    each = sequence("a", seed=0)
    plain = small_llama()
    embed = plain.get_input_embeddings()
    rows = [piece if isinstance(piece, torch.Tensor) else embed(torch.tensor(piece)) for piece in each.pieces(0, 23)]
    with torch.inference_mode():
        expected = plain(inputs_embeds=torch.cat(rows)[None]).logits[:, -1]
    torch.testing.assert_close(ModelRunner(small_llama()).run([chunk(each, 0, 23)]), expected)


def test_a_prompt_in_chunks_beside_others_is_the_prompt_in_one() -> None:
    whole = ModelRunner(small_llama()).run([chunk(sequence("a", seed=0), 0, 23)])
    runner = ModelRunner(small_llama())
    a, b = sequence("a", seed=0), sequence("b", seed=5)
    assert runner.run([chunk(b, 0, 3), chunk(a, 0, 1)]).shape == (0, VOCAB)
    runner.run([chunk(a, 1, 12), chunk(b, 3, 4)])
    runner.run([chunk(a, 12, 22), chunk(b, 4, 23)])
    torch.testing.assert_close(runner.run([chunk(a, 22, 23)]), whole)


def test_a_freed_sequence_leaves_nothing_behind() -> None:
    runner = ModelRunner(small_llama())
    first = runner.run([chunk(sequence("a", seed=0), 0, 23)])
    runner.free("a")
    assert runner.num_cached_sequences == 0
    runner.run([chunk(sequence("a", seed=3), 0, 23)])
    runner.free("a")
    torch.testing.assert_close(runner.run([chunk(sequence("a", seed=0), 0, 23)]), first)


def test_a_step_without_chunks_runs_nothing() -> None:
    assert ModelRunner(small_llama()).run([]).shape == (0, VOCAB)

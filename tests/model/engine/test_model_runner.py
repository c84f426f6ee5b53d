"""The logits of a sequence do not depend on chunks, on other sequences of the step, or on which blocks it has."""

import torch

from model.engine.config import EngineConfig
from model.engine.model_runner import ModelRunner
from model.engine.sampling_params import SamplingParams
from model.engine.scheduler import Chunk, Schedule
from model.engine.sequence import Sequence
from tests.model.engine.small_llama import VOCAB, small_llama, text, video


def sequence(request_id: str, *, seed: int, blocks: list[int]) -> Sequence:
    """Twenty-three tokens: six blocks of four."""
    return Sequence(
        request_id=request_id,
        prompt=(text(7, seed=seed), video(10, seed=seed), text(6, seed=seed + 1)),
        params=SamplingParams(),
        max_output_tokens=9,
        block_table=blocks,
    )


def chunk(each: Sequence, start: int, end: int, *, num_shared: int = 0) -> Chunk:
    return Chunk(each, start, end, sampled=end == each.num_tokens, num_shared_blocks=num_shared)


def runner() -> ModelRunner:
    made = ModelRunner(small_llama())
    made.allocate(EngineConfig(max_model_len=24, num_blocks=20, block_size=4))
    return made


def run(on: ModelRunner, *chunks: Chunk, copies: tuple[tuple[int, int], ...] = ()) -> torch.Tensor:
    return on.run(Schedule(chunks, copies=copies))


def whole() -> torch.Tensor:
    return run(runner(), chunk(sequence("a", seed=0, blocks=[0, 1, 2, 3, 4, 5]), 0, 23))


def test_the_logits_are_those_of_transformers() -> None:
    each = sequence("a", seed=0, blocks=[])
    plain = small_llama()
    embed = plain.get_input_embeddings()
    rows = [piece if isinstance(piece, torch.Tensor) else embed(torch.tensor(piece)) for piece in each.pieces(0, 23)]
    with torch.inference_mode():
        expected = plain(inputs_embeds=torch.cat(rows)[None]).logits[:, -1]
    torch.testing.assert_close(whole(), expected)


def test_a_prompt_in_chunks_and_scattered_blocks_has_the_logits_of_the_whole_prompt() -> None:
    shared = runner()
    a = sequence("a", seed=0, blocks=[9, 3, 4, 17, 0, 12])
    b = sequence("b", seed=5, blocks=[19, 18, 1, 2, 7, 8])
    assert run(shared, chunk(b, 0, 3), chunk(a, 0, 1)).shape == (0, VOCAB)
    run(shared, chunk(a, 1, 12), chunk(b, 3, 4))
    run(shared, chunk(a, 12, 22), chunk(b, 4, 23))
    torch.testing.assert_close(run(shared, chunk(a, 22, 23)), whole())


def test_blocks_that_one_chunk_fills_can_be_read_by_another_in_the_same_step() -> None:
    shared = runner()
    first = sequence("first", seed=0, blocks=[0, 1, 2, 3, 4, 5])
    second = sequence("second", seed=0, blocks=[0, 1, 2, 10, 11, 12])
    logits = run(shared, chunk(first, 0, 23, num_shared=3), chunk(second, 12, 23, num_shared=3))
    torch.testing.assert_close(logits, whole().expand(2, -1))


def test_blocks_are_copied_before_the_chunks_are_computed() -> None:
    forked = runner()
    run(forked, chunk(sequence("a", seed=0, blocks=[0, 1, 2, 3, 4, 5]), 0, 22))
    b = sequence("b", seed=0, blocks=[0, 1, 2, 3, 4, 9])
    torch.testing.assert_close(run(forked, chunk(b, 22, 23), copies=((5, 9),)), whole())


def test_blocks_are_copied_in_a_step_without_chunks() -> None:
    forked = runner()
    run(forked, chunk(sequence("a", seed=0, blocks=[0, 1, 2, 3, 4, 5]), 0, 22))
    assert run(forked, copies=((5, 9),)).shape == (0, VOCAB)
    b = sequence("b", seed=0, blocks=[0, 1, 2, 3, 4, 9])
    torch.testing.assert_close(run(forked, chunk(b, 22, 23)), whole())

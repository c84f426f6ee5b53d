"""A sequence returns the contents of any range of positions, whatever segments its prompt has."""

import torch

from model.engine.sampling_params import SamplingParams
from model.engine.sequence import Condition, Sequence, TextSegment, VideoSegment


def contents(sequence: Sequence, start: int, end: int) -> list[int]:
    """The contents of positions [start, end) as numbers; a video row is its first element."""
    numbers: list[int] = []
    for piece in sequence.pieces(start, end):
        numbers += piece[:, 0].int().tolist() if isinstance(piece, torch.Tensor) else piece
    return numbers


def test_any_range_of_prompt_and_answer_is_returned_in_order() -> None:
    rows = torch.arange(103, 107)[:, None].expand(4, 8).float()
    sequence = Sequence(
        request_id="a",
        prompt=(TextSegment((100, 101, 102)), VideoSegment(rows, "clip"), TextSegment((107, 108))),
        params=SamplingParams(),
        max_output_tokens=9,
        output_token_ids=[109, 110, 111],
    )
    assert (sequence.num_prompt_tokens, sequence.num_tokens) == (9, 12)
    for start in range(12):
        for end in range(start, 13):
            assert contents(sequence, start, end) == list(range(100 + start, 100 + end))


def test_the_keys_of_blocks_depend_on_salt_and_condition_and_a_fork_has_the_same() -> None:
    def sequence(salt: str, identity: str | None) -> Sequence:
        return Sequence(
            request_id="a",
            prompt=(TextSegment((1, 2, 3, 4)),),
            params=SamplingParams(),
            max_output_tokens=9,
            cache_salt=salt,
            condition=None if identity is None else Condition({}, identity),
        )

    cases = [
        ("", None),
        ("", ""),
        ("a", None),
        ("a", "b"),
        ("b", "a"),
        ("a', 'b", None),
        ("", "None"),
        ("ab", ""),
        ("", "ab"),
    ]
    keys = [sequence(*case).block_key(0, 4) for case in cases]
    assert len(set(keys)) == len(cases)
    assert sequence("a", "b").block_key(0, 4) == keys[3] == sequence("a", "b").fork().block_key(0, 4)

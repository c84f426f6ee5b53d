"""Limits that cannot work, and prompts that do not fit, are refused before any work."""

import pytest

from model.engine.config import EngineConfig, PromptTooLong, check_length


def test_a_prompt_must_leave_room_for_one_token_of_answer() -> None:
    config = EngineConfig(max_model_len=10)
    check_length(9, config)
    with pytest.raises(PromptTooLong, match="10 tokens, but at most 9 fit") as refused:
        check_length(10, config)
    assert (refused.value.num_prompt_tokens, refused.value.max_model_len) == (10, 10)


@pytest.mark.parametrize(
    ("max_num_seqs", "max_model_len", "max_num_batched_tokens"), [(0, 10, 10), (1, 1, 10), (4, 10, 3)]
)
def test_limits_that_cannot_work_are_refused(
    max_num_seqs: int, max_model_len: int, max_num_batched_tokens: int
) -> None:
    with pytest.raises(ValueError, match="must be at least"):
        EngineConfig(
            max_num_seqs=max_num_seqs,
            max_model_len=max_model_len,
            max_num_batched_tokens=max_num_batched_tokens,
        )

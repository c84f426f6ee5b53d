"""The queue has a bound in sequences and one in tokens, and a refusal says when to come again."""

import re

import pytest

from service.answers.admission import Admission, Load
from service.errors import Overloaded
from service.observability.metrics import Metrics
from service.settings import Settings

METRICS = Metrics()


def admission(**bounds: int) -> Admission:
    return Admission(Settings(**bounds), METRICS)  # type: ignore[arg-type]


def load(num_answers: int = 0, num_sequences: int = 0, num_tokens: int = 0) -> Load:
    return Load(num_answers=num_answers, num_sequences=num_sequences, num_tokens=num_tokens)


def refusals(reason: str) -> float:
    found = re.search(rf'reeltalk_admission_rejections_total{{reason="{reason}"}} (\S+)', METRICS.render().decode())
    return float(found[1]) if found else 0.0


def test_the_queue_is_full_at_its_bound_and_not_before() -> None:
    bounded = admission(max_queued_sequences=4)
    bounded.check_sequences(load(num_sequences=3), num_sequences=1)
    before = refusals("max_queued_sequences")
    with pytest.raises(Overloaded):
        bounded.check_sequences(load(num_sequences=4), num_sequences=1)
    with pytest.raises(Overloaded):
        bounded.check_sequences(load(num_sequences=2), num_sequences=3)  # beams
    assert refusals("max_queued_sequences") == before + 2


def test_answers_that_run_are_bounded_by_a_number_of_their_own() -> None:
    bounded = admission(max_pending_answers=2, max_queued_sequences=4)
    bounded.check_sequences(load(num_answers=1), num_sequences=1)
    with pytest.raises(Overloaded):
        bounded.check_sequences(load(num_answers=2), num_sequences=1)
    assert refusals("max_pending_answers") == 1


def test_tokens_are_counted_and_a_long_prompt_alone_has_room() -> None:
    bounded = admission(max_queued_tokens=1000)
    bounded.check_tokens(load(num_tokens=600), num_tokens=400)
    bounded.check_tokens(load(), num_tokens=5000)
    with pytest.raises(Overloaded):
        bounded.check_tokens(load(num_tokens=600), num_tokens=401)
    assert refusals("max_queued_tokens") == 1


def test_a_search_wider_than_the_queue_has_room_alone() -> None:
    admission(max_queued_sequences=2).check_sequences(load(), num_sequences=5)
    with pytest.raises(Overloaded):
        admission(max_queued_sequences=2).check_sequences(load(num_sequences=1), num_sequences=5)


def test_who_is_refused_is_told_to_wait_as_long_as_half_of_the_queue_takes() -> None:
    bounded = admission(max_queued_sequences=8)

    def wait() -> str:
        with pytest.raises(Overloaded) as refused:
            bounded.check_sequences(load(num_sequences=8), num_sequences=1)
        return refused.value.headers()["Retry-After"]

    assert wait() == "2"  # nothing is known
    bounded.answer_ended()
    assert wait() == "30"  # 4 at 0.1 a second, cut
    for _ in range(9):
        bounded.answer_ended()
    assert wait() == "4"
    for _ in range(90):
        bounded.answer_ended()
    assert wait() == "1"

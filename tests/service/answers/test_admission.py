"""The queue is bounded in sequences and in tokens, and a refusal says when to try again."""

import re

import pytest

from service.answers.admission import Admission
from service.errors import Overloaded, Unavailable
from service.observability.metrics import Metrics
from service.settings import Settings


def admission(**bounds: int) -> Admission:
    return Admission(Settings(**bounds), Metrics())  # type: ignore[arg-type]


def refusals(bounded: Admission, reason: str) -> float:
    rendered = bounded.metrics.render().decode()
    found = re.search(rf'reeltalk_admission_rejections_total{{reason="{reason}"}} (\S+)', rendered)
    return float(found[1]) if found else 0.0


def test_the_queue_is_full_at_its_bound_and_not_before() -> None:
    bounded = admission(max_queued_sequences=4)
    for _ in range(3):
        bounded.take(1)
    with pytest.raises(Overloaded):
        bounded.take(2)
    bounded.take(1)
    with pytest.raises(Overloaded):
        bounded.take(1)
    assert refusals(bounded, "max_queued_sequences") == 2


def test_a_place_leaves_the_queue_with_its_first_token_and_counts_as_an_answer_until_it_is_released() -> None:
    bounded = admission(max_pending_answers=2, max_queued_sequences=1)
    first = bounded.take(1)
    with pytest.raises(Overloaded):
        bounded.take(1)
    first.start()
    bounded.take(1).start()
    with pytest.raises(Overloaded):
        bounded.take(1)
    assert refusals(bounded, "max_pending_answers") == 1
    first.release()
    first.release()
    assert bounded.num_answers == 1
    bounded.take(1)


def test_tokens_are_counted_and_a_long_prompt_alone_has_room() -> None:
    bounded = admission(max_queued_tokens=1000)
    place = bounded.take(1)
    bounded.reserve_tokens(place, num_tokens=5000)
    bounded.reserve_tokens(place, num_tokens=600)
    bounded.reserve_tokens(bounded.take(1), num_tokens=400)
    late = bounded.take(1)
    with pytest.raises(Overloaded):
        bounded.reserve_tokens(late, num_tokens=1)
    assert refusals(bounded, "max_queued_tokens") == 1
    place.start()
    bounded.reserve_tokens(late, num_tokens=600)
    assert bounded.num_queued_tokens == 1000


def test_a_search_wider_than_the_queue_has_room_alone() -> None:
    bounded = admission(max_queued_sequences=2)
    search = bounded.take(5)
    search.release()
    bounded.take(1)
    with pytest.raises(Overloaded):
        bounded.take(5)


def test_an_answer_that_another_replica_accepted_takes_a_place_beyond_the_bounds() -> None:
    bounded = admission(max_pending_answers=1)
    bounded.take(1)
    bounded.take_unbounded(1)
    assert bounded.num_answers == 2


def test_after_closing_new_work_is_refused_and_running_answers_keep_their_places() -> None:
    bounded = admission()
    bounded.check_open()
    place = bounded.take(1)
    bounded.close()
    with pytest.raises(Unavailable) as refused:
        bounded.check_open()
    assert refused.value.code == "draining"
    assert bounded.num_answers == 1
    place.release()


def test_a_refusal_asks_to_wait_as_long_as_half_of_the_queue_takes() -> None:
    bounded = admission(max_queued_sequences=8)

    def end(count: int) -> None:
        for _ in range(count):
            place = bounded.take_unbounded(0)
            place.start()
            place.release()

    def wait() -> str:
        with pytest.raises(Overloaded) as refused:
            bounded.take(1)
        return refused.value.headers()["Retry-After"]

    bounded.take(8)
    bounded.take_unbounded(0).release()  # a refused question is no answer that ended
    assert wait() == "2"  # no answer has ended yet
    end(1)
    assert wait() == "30"  # 4 sequences at 0.1 a second, cut
    end(9)
    assert wait() == "4"
    end(90)
    assert wait() == "1"

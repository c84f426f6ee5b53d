"""A load is measured by the answers that complete."""

import asyncio

import httpx2
import pytest

from service.terminal.load import Load, MeasuredAnswer, measure_answer, run_load, summary
from tests.service.terminal.stub import events

LOAD = Load(num_streams=2, num_answers=4, num_tokens=3, question="What?")
DONE = {"finish_reason": "length", "usage": {"completion_tokens": 3}}


def good(*, first: float, gaps: list[float]) -> MeasuredAnswer:
    return MeasuredAnswer(first=first, gaps=gaps, generating=sum(gaps), num_tokens=3)


def test_times_are_summarised_over_all_answers() -> None:
    result = summary([good(first=0.1, gaps=[0.01, 0.03]), good(first=0.3, gaps=[0.02])], LOAD, seconds=2.0)
    assert result["tokens_per_second"] == 3.0
    assert result["answers_per_second"] == 1.0
    assert result["time_to_first_token_ms"] == {"mean": 200.0, "p50": 200.0, "p99": pytest.approx(298.0)}
    assert result["inter_token_latency_ms"]["p50"] == 20.0
    assert result["time_per_output_token_ms"]["mean"] == 15.0


def test_failed_answers_are_only_counted() -> None:
    result = summary([MeasuredAnswer(failure="overloaded"), MeasuredAnswer(failure="overloaded")], LOAD, seconds=1.0)
    assert result["failed"] == {"overloaded": 2}
    assert (result["answers"], result["tokens_per_second"]) == (0, 0.0)
    assert result["time_to_first_token_ms"] == {"mean": None, "p50": None, "p99": None}


def ask(body: str, status: int = 200) -> MeasuredAnswer:
    async def once() -> MeasuredAnswer:
        transport = httpx2.MockTransport(lambda request: httpx2.Response(status, content=body))
        async with httpx2.AsyncClient(base_url="http://service.test", transport=transport) as http:
            return await measure_answer(http, "ses_1", LOAD.message)

    return asyncio.run(once())


def test_an_answer_is_measured_from_delta_to_delta() -> None:
    answered = ask(
        events((1, "answer", {}), (2, "delta", {"text": "a"}), (3, "delta", {"text": "b"}), (4, "done", DONE))
    )
    assert answered.failure is None
    assert answered.num_tokens == 3
    assert len(answered.gaps) == 1
    assert answered.first > 0


@pytest.mark.parametrize(
    ("body", "status", "failure"),
    [
        (events((1, "delta", {"text": "a"})), 200, "connection_lost"),
        (events((1, "error", {"error": {"code": "worker_lost"}})), 200, "worker_lost"),
        ('{"error": {"code": "overloaded"}}', 503, "overloaded"),
        ("<html>", 502, "status_502"),
    ],
)
def test_an_incomplete_answer_has_failed(body: str, status: int, failure: str) -> None:
    assert ask(body, status).failure == failure


def test_no_more_streams_run_concurrently_than_the_load_has() -> None:
    running, most = 0, 0

    async def reply(request: httpx2.Request) -> httpx2.Response:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.01)
        running -= 1
        return httpx2.Response(200, content=events((1, "delta", {"text": "a"}), (2, "done", DONE)))

    async def measure() -> list[int]:
        seen: list[int] = []
        async with httpx2.AsyncClient(base_url="http://service.test", transport=httpx2.MockTransport(reply)) as http:
            result = await run_load(http, ["ses_1", "ses_2", "ses_3", "ses_4"], LOAD, seen.append)
        assert result["answers"] == 4
        return seen

    assert asyncio.run(measure()) == [1, 2, 3, 4]
    assert most == 2

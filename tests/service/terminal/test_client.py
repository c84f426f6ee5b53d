"""The client retries lost requests, yields every event once, and reports refusals in one sentence."""

from pathlib import Path
from typing import Any

import httpx2
import pytest

from service.terminal.client import Client
from service.terminal.failures import Exit, Failure
from tests.service.terminal.stub import Stub, breaks_off, lost, refuses, says, streams, unreachable

ACCEPTED = (1, "answer", {"id": "ans_1", "session_id": "ses_1"})
RED, CIRCLE = (2, "delta", {"text": "red "}), (3, "delta", {"text": "circle"})
DONE = (4, "done", {"finish_reason": "stop"})


def text_of(stub: Stub) -> str:
    return "".join(str(event.data.get("text", "")) for event in stub.client.ask("ses_1", "What?"))


def test_a_broken_stream_continues_after_its_last_complete_event() -> None:
    half = 'id: 3\nevent: delta\ndata: {"text":"circle"}'
    stub = Stub([breaks_off(ACCEPTED, RED, rest=half), streams(CIRCLE, DONE)])
    assert text_of(stub) == "red circle"
    assert stub.paths == ["POST /v1/sessions/ses_1/messages", "GET /v1/answers/ans_1/events"]
    assert stub.header("last-event-id") == [None, "2"]


def test_an_event_received_twice_is_yielded_once() -> None:
    stub = Stub([breaks_off(ACCEPTED, RED), streams(ACCEPTED, RED, CIRCLE, DONE)])
    assert text_of(stub) == "red circle"


def test_a_stream_that_ends_without_its_last_event_is_resumed() -> None:
    stub = Stub([streams(ACCEPTED, RED), streams(CIRCLE, DONE)])
    assert text_of(stub) == "red circle"


def test_a_question_whose_response_is_lost_is_retried_with_the_same_key() -> None:
    stub = Stub([lost, refuses("request_in_progress", "conflict_error", 409, retry_after="1"), streams(ACCEPTED, DONE)])
    assert text_of(stub) == ""
    keys = stub.header("idempotency-key")
    assert keys[0] is not None
    assert len(set(keys)) == 1


def test_two_questions_have_two_keys() -> None:
    stub = Stub([streams(ACCEPTED, DONE), streams(ACCEPTED, DONE)])
    text_of(stub)
    text_of(stub)
    assert len(set(stub.header("idempotency-key"))) == 2


def test_a_service_unavailable_during_an_answer_is_waited_for() -> None:
    away = refuses("no_replica", "unavailable_error", 503, retry_after="2")
    stub = Stub([breaks_off(ACCEPTED, RED), unreachable, away, streams(CIRCLE, DONE)])
    assert text_of(stub) == "red circle"
    assert 2.0 in stub.slept


def test_a_service_that_stays_unavailable_is_given_up_after_a_minute() -> None:
    stub = Stub([breaks_off(ACCEPTED, RED), *[unreachable] * 15])
    with pytest.raises(Failure) as failed:
        text_of(stub)
    assert failed.value.status is Exit.UNREACHABLE
    assert 50 < sum(stub.slept) <= 60


def test_a_service_that_never_responded_is_not_waited_for() -> None:
    stub = Stub([unreachable])
    with pytest.raises(Failure, match=r"No service responds at http://service\.test\.") as failed:
        text_of(stub)
    assert failed.value.status is Exit.UNREACHABLE
    assert stub.slept == []


@pytest.mark.parametrize(
    "code", [("overloaded", "overloaded_error", 503), ("too_many_requests", "rate_limit_error", 429)]
)
def test_a_busy_service_is_retried_after_the_time_it_names(code: tuple[str, str, int]) -> None:
    stub = Stub([refuses(*code, retry_after="3"), streams(ACCEPTED, RED, DONE)])
    assert text_of(stub) == "red "
    assert stub.slept == [3.0]
    assert stub.notified == [f"It is {code[0]}. Trying again in 3 s."]


def test_a_service_that_stays_busy_is_given_up_after_a_minute() -> None:
    stub = Stub([refuses("overloaded", "overloaded_error", 503, retry_after="20")] * 4)
    with pytest.raises(Failure) as failed:
        text_of(stub)
    assert failed.value.status is Exit.NOT_NOW
    assert stub.slept == [20.0] * 3


def test_a_full_store_is_not_waited_for(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_bytes(b"1")
    stub = Stub([refuses("storage_full", "rate_limit_error", 429, retry_after="1")])
    with pytest.raises(Failure):
        stub.client.upload(tmp_path / "a.mp4")
    assert stub.slept == []


@pytest.mark.parametrize(
    ("reply", "status"),
    [
        (refuses("not_a_video", "invalid_request_error", 415), Exit.REFUSED),
        (refuses("missing_key", "authentication_error", 401), Exit.NO_KEY),
        (refuses("missing_scope", "permission_error", 403), Exit.NO_KEY),
        (refuses("fetch_disabled", "permission_error", 403), Exit.REFUSED),
        (refuses("video_not_found", "not_found_error", 404), Exit.NOT_FOUND),
        (refuses("session_busy", "conflict_error", 409), Exit.NOT_NOW),
        (refuses("internal_error", "server_error", 500), Exit.FAILED),
        (says({"hello": 1}, status=404), Exit.UNREACHABLE),
        (lambda request: httpx2.Response(200, content="<html>"), Exit.UNREACHABLE),
        (lambda request: httpx2.Response(200, content="[1]"), Exit.UNREACHABLE),
    ],
)
def test_every_refusal_has_its_exit_status(reply: Any, status: Exit) -> None:
    with pytest.raises(Failure) as failed:
        Stub([reply]).client.get("videos", "vid_1")
    assert failed.value.status is status


def test_a_transient_connection_error_in_a_stream_is_retried() -> None:
    away = (None, "error", {"error": {"type": "unavailable_error", "code": "store_unavailable", "message": "Away."}})
    stub = Stub([streams(ACCEPTED, RED, away), streams(CIRCLE, DONE)])
    assert text_of(stub) == "red circle"


def test_an_invalid_stream_is_reported() -> None:
    stub = Stub([lambda request: httpx2.Response(200, content="id: one\n\n")])
    with pytest.raises(Failure, match="not a valid stream of events"):
        text_of(stub)


def test_a_list_is_read_page_after_page() -> None:
    pages = [
        says({"data": [{"id": f"v{number}"} for number in range(100)], "has_more": True}),
        says({"data": [{"id": "v100"}], "has_more": False}),
    ]
    stub = Stub(pages)
    found = stub.client.newest("videos", limit=150)
    assert (len(found["data"]), found["has_more"]) == (101, False)
    assert [dict(request.url.params) for request in stub.requests] == [
        {"limit": "100"},
        {"limit": "50", "after": "v99"},
    ]


def test_a_deletion_whose_response_was_lost_succeeds() -> None:
    stub = Stub([lost, refuses("video_not_found", "not_found_error", 404)])
    assert stub.client.delete("videos", "vid_1")["deleted"] is True


def test_every_request_carries_the_api_key() -> None:
    stub = Stub([says({"data": []}), says({})])
    stub.client.messages("ses_1")
    stub.client.cancel("ans_1")
    assert stub.header("authorization") == ["Bearer rtk_1"] * 2


@pytest.mark.parametrize("url", ["service.test:8000", "ftp://service.test", "http://", "http:///v1"])
def test_an_invalid_address_is_reported(url: str) -> None:
    with pytest.raises(Failure, match="is not the address of a service"):
        Client(url)


def test_an_invalid_api_key_is_reported() -> None:
    with pytest.raises(Failure, match="contains invalid characters"):
        Client("http://service.test", api_key="rtk_\n")

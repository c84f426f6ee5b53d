"""Deadlines, priorities, queue limits, and the limits of API keys."""

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.clips import h264_mp4
from tests.e2e.test_bad_input import refusal
from tests.e2e.test_tenants import client, make_key, upload
from tests.running import RunningService, eventually, parse_events, running

LONG: dict[str, Any] = {"content": "Tell me all.", "max_tokens": 1500, "ignore_eos": True}


@pytest.fixture(scope="module")
def one_at_a_time(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningService]:
    """A service that runs one answer at a time and queues two."""
    bounds = {"REELTALK_MAX_NUM_SEQS": "1", "REELTALK_MAX_QUEUED_SEQUENCES": "4", "REELTALK_MAX_QUEUED_TOKENS": "1000"}
    with running(tmp_path_factory.mktemp("one"), REELTALK_DISCONNECT_GRACE="1", **bounds) as service:
        yield service


def until(service: RunningService, metric: str, value: float) -> None:
    """Wait until a metric has a value."""
    eventually(lambda: service.metric(metric) >= value)


def test_an_answer_ends_at_its_deadline(service: RunningService, session: str) -> None:
    start = time.monotonic()
    with service.stream(session, **LONG, timeout=0.5) as stream:
        events = list(stream)
    assert 0.3 < time.monotonic() - start < 5
    assert (events[-1].name, events[-1].data["error"]["code"]) == ("error", "deadline_exceeded")
    eventually(lambda: service.metric("reeltalk_num_requests_running") == 0)

    reply = service.client.post(f"/v1/sessions/{session}/messages", json=LONG | {"timeout": 0.5})
    assert refusal(reply, 503) == "deadline_exceeded"
    assert int(reply.headers["Retry-After"]) >= 1
    assert service.ask(session, "And now?", timeout=60)["content"]
    assert refusal(service.client.post(f"/v1/sessions/{session}/messages", json=LONG | {"timeout": 0}), 422)


def test_an_answer_whose_deadline_passes_in_the_queue_never_runs(one_at_a_time: RunningService, drawn: Path) -> None:
    service = one_at_a_time
    video_id = service.upload(drawn)["id"]
    running_one, waiting_one = service.open_session(video_id), service.open_session(video_id)
    with service.stream(running_one, **LONG) as stream:
        next(event for event in stream if event.name == "delta")
        with service.stream(waiting_one, "What is it?", timeout=0.4) as waiting:
            names = [event.name for event in waiting]
        assert names[-1] == "error"
        assert "delta" not in names
    assert service.client.get(f"/v1/sessions/{waiting_one}/messages").json()["data"] == []


def test_a_waiting_answer_of_higher_priority_goes_first(one_at_a_time: RunningService, drawn: Path) -> None:
    service = one_at_a_time
    video_id = service.upload(drawn)["id"]
    ends: list[int] = []

    def ask(priority: int) -> None:
        service.ask(service.open_session(video_id), "What is it?", priority=priority)
        ends.append(priority)

    with service.stream(service.open_session(video_id), **LONG) as stream, ThreadPoolExecutor(3) as threads:
        answer = next(stream).data["id"]
        next(event for event in stream if event.name == "delta")
        for number, priority in enumerate((-3, 0, 5), start=1):
            threads.submit(ask, priority)
            until(service, "reeltalk_num_requests_waiting", number)
        service.client.post(f"/v1/answers/{answer}/cancel")
    assert ends == [5, 0, -3]


def test_the_queue_is_bounded_in_tokens(one_at_a_time: RunningService, drawn: Path) -> None:
    service = one_at_a_time
    video_id = service.upload(drawn)["id"]
    sessions = [service.open_session(video_id) for _ in range(4)]
    long_question = {"content": "What is it? " * 60, "max_tokens": 4}  # about 400 tokens
    with service.stream(sessions[0], **LONG) as stream, ThreadPoolExecutor(2) as threads:
        answer = next(stream).data["id"]
        next(event for event in stream if event.name == "delta")
        waiting = []
        for number, session in enumerate(sessions[1:3], start=1):
            path = f"/v1/sessions/{session}/messages"
            waiting.append(threads.submit(service.client.post, path, json=long_question))
            until(service, "reeltalk_num_queued_tokens", 350 * number)
        assert service.metric("reeltalk_num_queued_sequences") == 2
        assert service.metric("reeltalk_num_queued_tokens") <= 1000
        reply = service.client.post(f"/v1/sessions/{sessions[3]}/messages", json=long_question)
        assert refusal(reply, 503) == "overloaded"
        assert int(reply.headers["Retry-After"]) >= 1
        service.client.post(f"/v1/answers/{answer}/cancel")
        assert [each.result().status_code for each in waiting] == [200, 200]
    assert 'admission_rejections_total{reason="max_queued_tokens"} 1.0' in service.client.get("/metrics").text


@pytest.fixture(scope="module")
def limited(tmp_path_factory: pytest.TempPathFactory, drawn: Path) -> Iterator[httpx2.Client]:
    """A client whose API key may run two answers and store the bytes of two small clips."""
    data_dir = tmp_path_factory.mktemp("limited")
    stored = str(drawn.stat().st_size * 5 // 2)
    limits = ("--concurrent-answers", "2", "--stored-bytes", stored, "--max-priority", "2")
    _, token = make_key(data_dir, "small", *limits)
    with running(data_dir, REELTALK_DISCONNECT_GRACE="1") as service, client(service, token) as limited:
        yield limited


@contextmanager
def long_answer(client: httpx2.Client, session_id: str) -> Iterator[None]:
    """Run an answer as long as the block, then stop it."""
    with client.stream("POST", f"/v1/sessions/{session_id}/messages", json=LONG | {"stream": True}) as reply:
        answer = next(parse_events(reply.iter_lines())).data["id"]
        yield
        client.post(f"/v1/answers/{answer}/cancel")


def test_a_key_has_a_limit_of_concurrent_answers(limited: httpx2.Client, drawn: Path) -> None:
    video_id = upload(limited, drawn)
    sessions = [limited.post("/v1/sessions", json={"video_ids": [video_id]}).json()["id"] for _ in range(3)]
    path, short = f"/v1/sessions/{sessions[2]}/messages", {"content": "What is it?", "max_tokens": 2}
    with long_answer(limited, sessions[0]):
        assert limited.post(path, json=short).status_code == 200
        with long_answer(limited, sessions[1]):
            reply = limited.post(path, json=short)
            assert refusal(reply, 429) == "too_many_answers"
            assert int(reply.headers["Retry-After"]) >= 1
        eventually(lambda: limited.post(path, json=short).status_code == 200)


def test_a_key_has_a_limit_of_stored_bytes(limited: httpx2.Client, drawn: Path, yoga: Path, tmp_path: Path) -> None:
    upload(limited, drawn)
    second = h264_mp4(tmp_path / "second.mp4", frames=47)
    video_id = upload(limited, second)
    for announced in (True, False):
        content = yoga.read_bytes() if announced else iter([yoga.read_bytes()])
        reply = limited.post("/v1/videos", content=content, headers={"Content-Type": "video/mp4"})
        assert refusal(reply, 429) == "storage_full"
        assert int(reply.headers["Retry-After"]) >= 1
    assert len(limited.get("/v1/videos").json()["data"]) == 2
    repeated = limited.post(
        "/v1/videos", content=second.read_bytes(), headers={"Content-Type": "video/mp4", "Idempotency-Key": "again"}
    )
    assert (repeated.status_code, repeated.json()["id"]) == (200, video_id)
    assert limited.delete(f"/v1/videos/{video_id}").status_code == 200
    upload(limited, second)


def test_concurrent_uploads_cannot_exceed_the_limit_of_stored_bytes(
    limited: httpx2.Client, drawn: Path, tmp_path: Path
) -> None:
    """There is space for one upload: it is reserved when the upload begins, and released if the upload is aborted."""
    for video in limited.get("/v1/videos").json()["data"]:
        limited.delete(f"/v1/videos/{video['id']}")
    upload(limited, drawn)
    contents = [h264_mp4(tmp_path / f"{frames}.mp4", frames=frames).read_bytes() for frames in (44, 45)]
    room = drawn.stat().st_size * 3 // 2
    assert all(room / 2 < len(content) <= room for content in contents)
    begun, go_on = threading.Event(), threading.Event()

    def slowly(content: bytes, *, whole: bool) -> Iterator[bytes]:
        yield content[:1000]
        begun.set()
        assert go_on.wait(20)
        if not whole:
            raise ConnectionError
        yield content[1000:]

    def send(content: bytes | Iterator[bytes], **headers: str) -> httpx2.Response:
        fresh = httpx2.Client(base_url=limited.base_url, headers=limited.headers, timeout=30)  # no idle connection
        with fresh:
            return fresh.post("/v1/videos", content=content, headers={"Content-Type": "video/mp4"} | headers)

    def is_full() -> bool:
        assert not first.done(), first.exception() or first.result().text
        return send(bytes(room)).status_code == 429  # not a video, so it is refused with 415 while there is space

    length = {"Content-Length": str(len(contents[0]))}
    for whole in (False, True):
        begun.clear()
        go_on.clear()
        with ThreadPoolExecutor(1) as thread:
            first = thread.submit(send, slowly(contents[0], whole=whole), **length)
            assert begun.wait(20)
            eventually(is_full)
            assert refusal(send(iter([contents[1]])), 429) == "storage_full"
            go_on.set()
            if whole:
                assert first.result().status_code == 201
            else:
                assert isinstance(first.exception(), ConnectionError)
                eventually(lambda: send(contents[1]).status_code == 201)
                (other,) = (each for each in limited.get("/v1/videos").json()["data"] if each["num_frames"] == 45)
                limited.delete(f"/v1/videos/{other['id']}")


def test_a_key_has_a_maximum_priority(limited: httpx2.Client) -> None:
    video_id = limited.get("/v1/videos").json()["data"][0]["id"]
    session = limited.post("/v1/sessions", json={"video_ids": [video_id]}).json()["id"]
    question = {"content": "What is it?", "max_tokens": 2}
    path = f"/v1/sessions/{session}/messages"
    assert refusal(limited.post(path, json=question | {"priority": 3}), 403) == "priority_too_high"
    assert limited.post(path, json=question | {"priority": 2}).status_code == 200
    assert refusal(limited.post(path, json=question | {"priority": 10}), 422) == "invalid_value"

"""After killed processes, lost clients and conflicting questions nothing hangs, nothing is lost, and no work leaks."""

import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx2
import pytest

from tests.clips import h264_mp4
from tests.e2e.test_bad_input import refusal
from tests.running import RunningService, eventually, is_alive, parse_events, running

LONG = 400  # tokens; some seconds


@pytest.fixture
def own(tmp_path: Path) -> Iterator[RunningService]:
    """A service for one test, which may damage it."""
    with running(tmp_path / "data", REELTALK_DISCONNECT_GRACE="1") as service:
        yield service


def text_of(service: RunningService, session_id: str, **fields: object) -> str:
    with service.stream(session_id, "Tell me all.", max_tokens=LONG, ignore_eos=True, **fields) as stream:
        events = list(stream)
    assert events[-1].name == "done", events[-1]
    return "".join(event.data["text"] for event in events if event.name == "delta")


def test_a_second_question_in_a_session_is_refused(service: RunningService, session: str) -> None:
    with service.stream(session, "Tell me all.", max_tokens=LONG, ignore_eos=True) as stream:
        answer = next(stream)
        next(event for event in stream if event.name == "delta")
        reply = service.client.post(f"/v1/sessions/{session}/messages", json={"content": "And?"})
        assert refusal(reply, 409) == "session_busy"
        service.client.post(f"/v1/answers/{answer.data['id']}/cancel")
        assert list(stream)[-1].data["finish_reason"] == "abort"
    service.ask(session, "And now?")


def test_one_of_two_concurrent_questions_is_refused(service: RunningService, session: str) -> None:
    def ask(_: int) -> int:
        body = {"content": "Hello?", "max_tokens": 64, "temperature": 0}
        status: int = service.client.post(f"/v1/sessions/{session}/messages", json=body).status_code
        return status

    with ThreadPoolExecutor(4) as threads:
        statuses = list(threads.map(ask, range(4)))
    assert statuses.count(200) >= 1
    assert set(statuses) <= {200, 409}
    turns = service.client.get(f"/v1/sessions/{session}/messages").json()["data"]
    assert len(turns) == 2 * statuses.count(200)


def test_a_cancelled_answer_keeps_its_text(service: RunningService, session: str) -> None:
    with service.stream(session, "Tell me all.", max_tokens=LONG, ignore_eos=True) as stream:
        answer_id = next(stream).data["id"]
        content = next(event for event in stream if event.name == "delta").data["text"]
        service.client.post(f"/v1/answers/{answer_id}/cancel")
        rest = list(stream)
    content += "".join(event.data["text"] for event in rest if event.name == "delta")
    answer = service.client.get(f"/v1/answers/{answer_id}").json()
    assert answer["status"] == "cancelled"
    assert answer["message"]["content"] == content != ""
    turns = service.client.get(f"/v1/sessions/{session}/messages").json()["data"]
    assert [turn["content"] for turn in turns] == ["Tell me all.", content]


def test_an_answer_without_readers_stops_after_the_grace_period(service: RunningService, session: str) -> None:
    with service.stream(session, "Tell me all.", max_tokens=1700, ignore_eos=True) as stream:
        answer_id = next(stream).data["id"]
        next(event for event in stream if event.name == "delta")
    eventually(lambda: service.client.get(f"/v1/answers/{answer_id}").json()["status"] == "cancelled")
    eventually(lambda: service.metric("reeltalk_num_requests_running") == 0)
    service.ask(session, "Still there?")


def test_a_client_that_reconnects_continues_after_its_last_event(service: RunningService, session: str) -> None:
    with service.stream(session, "Tell me all.", max_tokens=200, ignore_eos=True) as stream:
        answer_id = next(stream).data["id"]
        read = [next(stream) for _ in range(5)]
    with service.client.stream(
        "GET", f"/v1/answers/{answer_id}/events", headers={"Last-Event-ID": str(read[-1].id)}
    ) as reply:
        read += parse_events(reply.iter_lines())
    assert [event.id for event in read] == list(range(2, len(read) + 2))
    content = "".join(event.data["text"] for event in read if event.name == "delta")
    assert service.client.get(f"/v1/answers/{answer_id}").json()["message"]["content"] == content


def test_an_aborted_upload_leaves_nothing_behind(service: RunningService) -> None:
    def half() -> Iterator[bytes]:
        yield b"x" * 100_000
        raise ConnectionAbortedError

    with pytest.raises(ConnectionAbortedError):
        service.client.post("/v1/videos", content=half(), headers={"Content-Type": "video/mp4"})
    spool = service.data_dir / "media" / "spool"
    eventually(lambda: not list(spool.iterdir()))


def test_no_token_is_lost_when_a_worker_is_killed(own: RunningService, drawn: Path) -> None:
    video_id = own.upload(drawn)["id"]
    undisturbed = {
        temperature: text_of(own, own.open_session(video_id), temperature=temperature, seed=7)
        for temperature in (0.0, 1.0)
    }
    for temperature, expected in undisturbed.items():
        session_id = own.open_session(video_id)
        fields = {"temperature": temperature, "seed": 7, "max_tokens": LONG, "ignore_eos": True}
        with own.stream(session_id, "Tell me all.", **fields) as stream:
            events = [next(stream) for _ in range(20)]
            os.kill(own.child("service.workers"), signal.SIGKILL)
            events += stream
        assert events[-1].name == "done", events[-1]
        assert "".join(event.data["text"] for event in events if event.name == "delta") == expected
        assert events[-1].data["usage"]["completion_tokens"] <= LONG
    assert own.metric("reeltalk_worker_restarts_total") == 2


def test_a_question_asked_without_a_worker_is_answered_by_the_next_one(own: RunningService, drawn: Path) -> None:
    session_id = own.open_session(own.upload(drawn)["id"])
    os.kill(own.child("service.workers"), signal.SIGKILL)
    eventually(lambda: own.client.get("/readyz").status_code == 503)
    assert own.client.get("/healthz").status_code == 200
    assert own.ask(session_id, "Are you there?")["finish_reason"] in {"stop", "length"}
    assert own.client.get("/readyz").status_code == 200


def test_a_worker_that_hangs_is_replaced(tmp_path: Path, drawn: Path) -> None:
    with running(tmp_path / "data", REELTALK_WORKER_TIMEOUT="4") as service:
        session_id = service.open_session(service.upload(drawn)["id"])
        with service.stream(session_id, "Tell me all.", max_tokens=LONG, ignore_eos=True) as stream:
            events = [next(stream) for _ in range(20)]
            os.kill(service.child("service.workers"), signal.SIGSTOP)
            events += stream
        assert events[-1].name == "done", events[-1]
        assert events[-1].data["usage"]["completion_tokens"] == LONG


def test_a_video_is_encoded_after_its_worker_was_killed(own: RunningService, tmp_path: Path) -> None:
    path = h264_mp4(tmp_path / "orphan.mp4", frames=40)
    worker = own.child("service.workers")
    os.kill(worker, signal.SIGSTOP)  # so that it certainly has the clip when it is killed
    reply = own.client.post("/v1/videos", files={"file": ("orphan.mp4", path.read_bytes())})
    time.sleep(1)
    os.kill(worker, signal.SIGKILL)
    assert own.wait_until_processed(reply.json()["id"])["status"] == "ready"


def test_an_upload_succeeds_after_its_decode_process_was_killed(own: RunningService, tmp_path: Path) -> None:
    path = h264_mp4(tmp_path / "slow.mp4", frames=41)
    with upload_to_stopped_children(own, path) as (upload, first, _):
        os.kill(first, signal.SIGKILL)
        reply = upload.result()
    assert reply.status_code == 201, reply.text
    assert own.wait_until_processed(reply.json()["id"])["status"] == "ready"


def test_a_file_that_crashes_two_decode_processes_is_refused(own: RunningService, tmp_path: Path) -> None:
    path = h264_mp4(tmp_path / "poison.mp4", frames=42)
    with upload_to_stopped_children(own, path, both=True) as (upload, first, second):
        end_one_after_the_other(own, signal.SIGSEGV, first, second)
        assert refusal(upload.result(), 422) == "decode_crashed"
    assert all(video["filename"] != "poison.mp4" for video in own.client.get("/v1/videos").json()["data"])
    assert own.upload(path)["status"] == "ready"  # the file is valid


def test_decode_processes_killed_by_the_system_do_not_blame_the_file(own: RunningService, tmp_path: Path) -> None:
    path = h264_mp4(tmp_path / "starved.mp4", frames=43)
    with upload_to_stopped_children(own, path, both=True) as (upload, first, second):
        end_one_after_the_other(own, signal.SIGKILL, first, second)
        assert refusal(upload.result(), 503) == "decode_unavailable"
        assert upload.result().headers["Retry-After"] == "1"
    assert own.upload(path)["status"] == "ready"


@contextmanager
def upload_to_stopped_children(
    service: RunningService, path: Path, *, both: bool = False
) -> Iterator[tuple[Future[httpx2.Response], int, int]]:
    """An upload in a stopped decode process; yields the process and the next one."""
    first = service.child("service.decoding.child")
    os.kill(first, signal.SIGSTOP)
    with ThreadPoolExecutor(1) as thread:
        upload = thread.submit(service.client.post, "/v1/videos", files={"file": (path.name, path.read_bytes())})

        eventually(lambda: len(decode_children(service)) == 2)
        (second,) = decode_children(service) - {first}
        if both:
            os.kill(second, signal.SIGSTOP)
        yield upload, first, second


def end_one_after_the_other(service: RunningService, number: signal.Signals, first: int, second: int) -> None:
    """Kill a decode process that has a file, and then the next one when it has the file."""
    os.kill(first, number)
    os.kill(first, signal.SIGCONT)
    eventually(lambda: bool(decode_children(service) - {first, second}))  # the one after the next has started
    os.kill(second, number)
    os.kill(second, signal.SIGCONT)


def decode_children(service: RunningService) -> set[int]:
    return {pid for pid, command in service.children().items() if "service.decoding.child" in command}


def test_while_redis_hangs_requests_are_refused_and_readiness_fails(own: RunningService, drawn: Path) -> None:
    session_id = own.open_session(own.upload(drawn)["id"])
    redis = own.child("redis-server")
    os.kill(redis, signal.SIGSTOP)
    start = time.monotonic()
    reply = own.client.post(f"/v1/sessions/{session_id}/messages", json={"content": "Hello?"})
    assert refusal(reply, 503) == "store_unavailable"
    assert time.monotonic() - start < 8
    assert own.client.get("/readyz").json()["missing"] == ["store"]
    assert own.client.get("/healthz").status_code == 200
    os.kill(redis, signal.SIGCONT)
    eventually(lambda: own.client.get("/readyz").status_code == 200)
    own.ask(session_id, "And now?")


def test_a_killed_redis_restarts_with_all_messages(own: RunningService, drawn: Path) -> None:
    session_id = own.open_session(own.upload(drawn)["id"])
    content = own.ask(session_id, "What is it?")["content"]
    other_id = own.open_session(own.upload(drawn)["id"])
    with own.stream(other_id, "Tell me all.", max_tokens=LONG, ignore_eos=True) as stream:
        answer_id = next(stream).data["id"]
        next(event for event in stream if event.name == "delta")
        os.kill(own.child("redis-server"), signal.SIGKILL)
    eventually(lambda: own.client.get("/readyz").status_code == 200)
    messages = own.client.get(f"/v1/sessions/{session_id}/messages").json()["data"]
    assert [message["content"] for message in messages] == ["What is it?", content]
    with own.client.stream("GET", f"/v1/answers/{answer_id}/events") as reply:
        events = list(parse_events(reply.iter_lines()))
    assert [event.id for event in events] == list(range(1, len(events) + 1))  # none is lost or duplicated
    assert events[-1].name == "done"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_service_and_all_its_processes(tmp_path: Path, number: signal.Signals) -> None:
    with running(tmp_path / "data") as service:
        children = service.children()
        for part in ("redis-server", "service.workers", "service.decoding.child"):
            assert any(part in command for command in children.values())
        service.process.send_signal(number)
        assert service.process.wait(20) == 0
        assert not any(is_alive(pid) for pid in children)


def test_a_second_interrupt_stops_at_once_and_loses_nothing(tmp_path: Path, drawn: Path) -> None:
    with running(tmp_path / "data", REELTALK_SHUTDOWN_TIMEOUT="60") as service:
        session_id = service.open_session(service.upload(drawn)["id"])
        children = service.children()
        with service.stream(session_id, "Tell me all.", max_tokens=LONG, ignore_eos=True) as stream:
            read = [next(stream) for _ in range(20)]
            service.process.send_signal(signal.SIGINT)
            eventually(lambda: any("Waiting for connections" in line for line in list(service.output)))
            with pytest.raises(httpx2.RequestError):
                service.client.get("/healthz")
            service.process.send_signal(signal.SIGINT)
            read += stream  # the stream is closed without a last event
            assert service.process.wait(15) == 0
        assert not any(is_alive(pid) for pid in children)
    assert read[-1].name == "delta"
    assert not any("Traceback" in line for line in service.output)

    with (
        running(tmp_path / "data") as service,
        service.client.stream("GET", f"/v1/answers/{read[0].data['id']}/events?after={read[-1].id}") as reply,
    ):
        read += parse_events(reply.iter_lines())
        assert [event.id for event in read] == list(range(1, len(read) + 1))
        assert read[-1].data["usage"]["completion_tokens"] == LONG


def test_the_children_of_a_killed_service_end_and_nothing_is_lost(tmp_path: Path, drawn: Path) -> None:
    with running(tmp_path / "data") as service:
        undisturbed = text_of(service, service.open_session(service.upload(drawn)["id"]))
        other_id = service.open_session(service.upload(drawn)["id"])
        session_id = service.open_session(service.upload(drawn)["id"])
        content = service.ask(session_id, "What is it?")["content"]
        with service.stream(other_id, "Tell me all.", max_tokens=LONG, ignore_eos=True) as stream:
            read = [next(stream) for _ in range(20)]
            interrupted = read[0].data["id"]
            children = service.children()
            service.process.kill()
            service.process.wait()
        eventually(lambda: not any(is_alive(pid) for pid in children))

    with running(tmp_path / "data") as service:
        messages = service.client.get(f"/v1/sessions/{session_id}/messages").json()["data"]
        assert [message["content"] for message in messages] == ["What is it?", content]
        assert service.client.post(f"/v1/sessions/{session_id}/messages", json={"content": "?"}).is_success
        with service.client.stream("GET", f"/v1/answers/{interrupted}/events?after={read[-1].id}") as reply:
            read += parse_events(reply.iter_lines())
        assert [event.id for event in read] == list(range(1, len(read) + 1))
        assert read[-1].name == "done"
        assert read[-1].data["usage"]["completion_tokens"] == LONG
        assert "".join(event.data["text"] for event in read if event.name == "delta") == undisturbed
        assert service.metric("reeltalk_video_encode_seconds_count") == 0  # the features were cached
        assert service.metric("reeltalk_answer_takeovers_total") == 1


def test_evicted_features_are_encoded_again(service: RunningService, tmp_path: Path) -> None:
    video = service.upload(h264_mp4(tmp_path / "evicted.mp4", frames=34))
    first = service.ask(service.open_session(video["id"]), "What is it?")["content"]
    assert service.forget_features(video["sha256"]) == 1
    with service.stream(service.open_session(video["id"]), "What is it?") as stream:
        events = list(stream)
    stages = [event.data["stage"] for event in events if event.name == "progress"]
    assert stages == ["decode"] * 8 + ["encode"] * 2 + ["ready"]
    assert "".join(event.data["text"] for event in events if event.name == "delta") == first


def test_a_damaged_cache_value_counts_as_a_miss(service: RunningService, tmp_path: Path) -> None:
    video = service.upload(h264_mp4(tmp_path / "flipped.mp4", frames=35))
    first = service.ask(service.open_session(video["id"]), "What is it?")["content"]
    corrupt = service.metric("reeltalk_feature_cache_corrupt_total")
    service.flip_a_bit_of_features(video["sha256"])
    assert service.ask(service.open_session(video["id"]), "What is it?")["content"] == first
    assert service.metric("reeltalk_feature_cache_corrupt_total") == corrupt + 1


def test_a_video_is_encoded_once_for_many_concurrent_questions(service: RunningService, tmp_path: Path) -> None:
    video = service.upload(h264_mp4(tmp_path / "crowd.mp4", frames=36))
    service.forget_features(video["sha256"])
    encoded = service.metric("reeltalk_video_encode_seconds_count")

    def ask(_: int) -> str:
        content: str = service.ask(service.open_session(video["id"]), "What is it?", max_tokens=16)["content"]
        return content

    with ThreadPoolExecutor(12) as threads:
        answers = set(threads.map(ask, range(12)))
    assert len(answers) == 1
    assert service.metric("reeltalk_video_encode_seconds_count") == encoded + 1


def test_questions_beyond_the_queue_limit_are_refused(tmp_path: Path, drawn: Path) -> None:
    with running(tmp_path / "data", REELTALK_MAX_PENDING_ANSWERS="1") as service:
        video_id = service.upload(drawn)["id"]
        with service.stream(service.open_session(video_id), "Tell me all.", max_tokens=LONG, ignore_eos=True) as stream:
            next(stream)
            session_id = service.open_session(video_id)
            reply = service.client.post(f"/v1/sessions/{session_id}/messages", json={"content": "Me too?"})
            assert refusal(reply, 503) == "overloaded"
            list(stream)
        service.ask(session_id, "And now?")

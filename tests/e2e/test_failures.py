"""Processes are killed, clients leave, questions collide: nothing hangs, runs on for nobody, or is lost."""

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
    """A service of one's own, to be treated badly."""
    with running(tmp_path / "data", REELTALK_DISCONNECT_GRACE="1") as service:
        yield service


def text_of(service: RunningService, session_id: str, **fields: object) -> str:
    with service.stream(session_id, "Tell me all.", max_tokens=LONG, ignore_eos=True, **fields) as stream:
        events = list(stream)
    assert events[-1].name == "done", events[-1]
    return "".join(event.data["text"] for event in events if event.name == "delta")


def test_a_second_question_has_to_wait(service: RunningService, session: str) -> None:
    with service.stream(session, "Tell me all.", max_tokens=LONG, ignore_eos=True) as stream:
        answer = next(stream)
        next(event for event in stream if event.name == "delta")
        reply = service.client.post(f"/v1/sessions/{session}/messages", json={"content": "And?"})
        assert refusal(reply, 409) == "session_busy"
        service.client.post(f"/v1/answers/{answer.data['id']}/cancel")
        assert list(stream)[-1].data["finish_reason"] == "abort"
    service.ask(session, "And now?")


def test_two_questions_at_once_get_one_answer(service: RunningService, session: str) -> None:
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


def test_a_cancelled_answer_keeps_what_it_said(service: RunningService, session: str) -> None:
    with service.stream(session, "Tell me all.", max_tokens=LONG, ignore_eos=True) as stream:
        answer_id = next(stream).data["id"]
        said = next(event for event in stream if event.name == "delta").data["text"]
        service.client.post(f"/v1/answers/{answer_id}/cancel")
        rest = list(stream)
    said += "".join(event.data["text"] for event in rest if event.name == "delta")
    answer = service.client.get(f"/v1/answers/{answer_id}").json()
    assert answer["status"] == "cancelled"
    assert answer["message"]["content"] == said != ""
    turns = service.client.get(f"/v1/sessions/{session}/messages").json()["data"]
    assert [turn["content"] for turn in turns] == ["Tell me all.", said]


def test_a_client_that_leaves_stops_its_answer_after_the_grace_period(service: RunningService, session: str) -> None:
    with service.stream(session, "Tell me all.", max_tokens=1700, ignore_eos=True) as stream:
        answer_id = next(stream).data["id"]
        next(event for event in stream if event.name == "delta")
    eventually(lambda: service.client.get(f"/v1/answers/{answer_id}").json()["status"] == "cancelled")
    eventually(lambda: service.metric("reeltalk_num_requests_running") == 0)
    service.ask(session, "Still there?")


def test_a_client_that_comes_back_goes_on_where_it_left(service: RunningService, session: str) -> None:
    with service.stream(session, "Tell me all.", max_tokens=200, ignore_eos=True) as stream:
        answer_id = next(stream).data["id"]
        read = [next(stream) for _ in range(5)]
    with service.client.stream(
        "GET", f"/v1/answers/{answer_id}/events", headers={"Last-Event-ID": str(read[-1].id)}
    ) as reply:
        read += parse_events(reply.iter_lines())
    assert [event.id for event in read] == list(range(2, len(read) + 2))
    said = "".join(event.data["text"] for event in read if event.name == "delta")
    assert service.client.get(f"/v1/answers/{answer_id}").json()["message"]["content"] == said


def test_a_client_that_leaves_in_mid_upload_leaves_nothing(service: RunningService) -> None:
    def half() -> Iterator[bytes]:
        yield b"x" * 100_000
        raise ConnectionAbortedError

    with pytest.raises(ConnectionAbortedError):
        service.client.post("/v1/videos", content=half(), headers={"Content-Type": "video/mp4"})
    spool = service.data_dir / "media" / "spool"
    eventually(lambda: not list(spool.iterdir()))


def test_a_killed_worker_costs_a_pause_and_no_token(own: RunningService, drawn: Path) -> None:
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


def test_a_question_asked_while_the_worker_is_gone_is_answered_by_the_next_one(
    own: RunningService, drawn: Path
) -> None:
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


def test_a_video_survives_the_worker_that_should_have_encoded_it(own: RunningService, tmp_path: Path) -> None:
    path = h264_mp4(tmp_path / "orphan.mp4", frames=40)
    worker = own.child("service.workers")
    os.kill(worker, signal.SIGSTOP)  # so that the clip is certainly in its hands when it dies
    reply = own.client.post("/v1/videos", files={"file": ("orphan.mp4", path.read_bytes())})
    time.sleep(1)
    os.kill(worker, signal.SIGKILL)
    assert own.wait_until_processed(reply.json()["id"])["status"] == "ready"


def test_nobody_notices_that_a_decode_child_was_killed(own: RunningService, tmp_path: Path) -> None:
    path = h264_mp4(tmp_path / "slow.mp4", frames=41)
    with upload_to_stopped_children(own, path) as (upload, first, _):
        os.kill(first, signal.SIGKILL)
        reply = upload.result()
    assert reply.status_code == 201, reply.text
    assert own.wait_until_processed(reply.json()["id"])["status"] == "ready"


def test_a_file_that_crashes_two_decode_children_is_refused_and_not_kept(own: RunningService, tmp_path: Path) -> None:
    path = h264_mp4(tmp_path / "poison.mp4", frames=42)
    with upload_to_stopped_children(own, path, both=True) as (upload, first, second):
        end_one_after_the_other(own, signal.SIGSEGV, first, second)
        assert refusal(upload.result(), 422) == "decode_crashed"
    assert all(video["filename"] != "poison.mp4" for video in own.client.get("/v1/videos").json()["data"])
    assert own.upload(path)["status"] == "ready"  # it was a good one, after all


def test_decode_children_that_the_machine_kills_are_no_fault_of_the_file(own: RunningService, tmp_path: Path) -> None:
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
    """An upload in the hands of a child that is stopped, the child, and the next one, stopped too or waiting."""
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
    """End a child that has a file, and then, as soon as it has the file, the next one."""
    os.kill(first, number)
    os.kill(first, signal.SIGCONT)
    eventually(lambda: bool(decode_children(service) - {first, second}))  # the next but one is started by then
    os.kill(second, number)
    os.kill(second, signal.SIGCONT)


def decode_children(service: RunningService) -> set[int]:
    return {pid for pid, command in service.children().items() if "service.decoding.child" in command}


def test_while_redis_hangs_state_is_refused_and_health_tells(own: RunningService, drawn: Path) -> None:
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


def test_a_killed_redis_comes_back_with_all_that_was_said(own: RunningService, drawn: Path) -> None:
    session_id = own.open_session(own.upload(drawn)["id"])
    said = own.ask(session_id, "What is it?")["content"]
    other_id = own.open_session(own.upload(drawn)["id"])
    with own.stream(other_id, "Tell me all.", max_tokens=LONG, ignore_eos=True) as stream:
        answer_id = next(stream).data["id"]
        next(event for event in stream if event.name == "delta")
        os.kill(own.child("redis-server"), signal.SIGKILL)
    eventually(lambda: own.client.get("/readyz").status_code == 200)
    messages = own.client.get(f"/v1/sessions/{session_id}/messages").json()["data"]
    assert [message["content"] for message in messages] == ["What is it?", said]
    with own.client.stream("GET", f"/v1/answers/{answer_id}/events") as reply:
        events = list(parse_events(reply.iter_lines()))
    assert [event.id for event in events] == list(range(1, len(events) + 1))  # none lost, none doubled
    assert events[-1].name == "done"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_service_and_everything_it_started(tmp_path: Path, number: signal.Signals) -> None:
    with running(tmp_path / "data") as service:
        children = service.children()
        for part in ("redis-server", "service.workers", "service.decoding.child"):
            assert any(part in command for command in children.values())
        service.process.send_signal(number)
        assert service.process.wait(20) == 0
        assert not any(is_alive(pid) for pid in children)


def test_a_second_interrupt_waits_for_nothing_and_loses_nothing(tmp_path: Path, drawn: Path) -> None:
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
            read += stream  # it is let go without an end
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


def test_a_killed_service_takes_its_children_along_and_loses_nothing(tmp_path: Path, drawn: Path) -> None:
    with running(tmp_path / "data") as service:
        undisturbed = text_of(service, service.open_session(service.upload(drawn)["id"]))
        other_id = service.open_session(service.upload(drawn)["id"])
        session_id = service.open_session(service.upload(drawn)["id"])
        said = service.ask(session_id, "What is it?")["content"]
        with service.stream(other_id, "Tell me all.", max_tokens=LONG, ignore_eos=True) as stream:
            read = [next(stream) for _ in range(20)]
            interrupted = read[0].data["id"]
            children = service.children()
            service.process.kill()
            service.process.wait()
        eventually(lambda: not any(is_alive(pid) for pid in children))

    with running(tmp_path / "data") as service:
        messages = service.client.get(f"/v1/sessions/{session_id}/messages").json()["data"]
        assert [message["content"] for message in messages] == ["What is it?", said]
        assert service.client.post(f"/v1/sessions/{session_id}/messages", json={"content": "?"}).is_success
        with service.client.stream("GET", f"/v1/answers/{interrupted}/events?after={read[-1].id}") as reply:
            read += parse_events(reply.iter_lines())
        assert [event.id for event in read] == list(range(1, len(read) + 1))
        assert read[-1].name == "done"
        assert read[-1].data["usage"]["completion_tokens"] == LONG
        assert "".join(event.data["text"] for event in read if event.name == "delta") == undisturbed
        assert service.metric("reeltalk_video_encode_seconds_count") == 0  # the features were kept
        assert service.metric("reeltalk_answer_takeovers_total") == 1


def test_features_that_are_gone_are_made_again_without_the_client_noticing(
    service: RunningService, tmp_path: Path
) -> None:
    video = service.upload(h264_mp4(tmp_path / "evicted.mp4", frames=34))
    first = service.ask(service.open_session(video["id"]), "What is it?")["content"]
    assert service.forget_features(video["sha256"]) == 1
    with service.stream(service.open_session(video["id"]), "What is it?") as stream:
        events = list(stream)
    stages = [event.data["stage"] for event in events if event.name == "progress"]
    assert stages == ["decode"] * 8 + ["encode"] * 2 + ["ready"]
    assert "".join(event.data["text"] for event in events if event.name == "delta") == first


def test_a_damaged_cache_value_is_a_counted_miss(service: RunningService, tmp_path: Path) -> None:
    video = service.upload(h264_mp4(tmp_path / "flipped.mp4", frames=35))
    first = service.ask(service.open_session(video["id"]), "What is it?")["content"]
    corrupt = service.metric("reeltalk_feature_cache_corrupt_total")
    service.flip_a_bit_of_features(video["sha256"])
    assert service.ask(service.open_session(video["id"]), "What is it?")["content"] == first
    assert service.metric("reeltalk_feature_cache_corrupt_total") == corrupt + 1


def test_many_ask_about_one_cold_video_and_it_is_encoded_once(service: RunningService, tmp_path: Path) -> None:
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


def test_more_questions_than_there_is_room_for_are_refused(tmp_path: Path, drawn: Path) -> None:
    with running(tmp_path / "data", REELTALK_MAX_PENDING_ANSWERS="1") as service:
        video_id = service.upload(drawn)["id"]
        with service.stream(service.open_session(video_id), "Tell me all.", max_tokens=LONG, ignore_eos=True) as stream:
            next(stream)
            session_id = service.open_session(video_id)
            reply = service.client.post(f"/v1/sessions/{session_id}/messages", json={"content": "Me too?"})
            assert refusal(reply, 503) == "overloaded"
            list(stream)
        service.ask(session_id, "And now?")

"""When parts of a fleet are killed, clients lose nothing."""

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from service.commands.demo import SAMPLE
from tests.clips import h264_mp4
from tests.e2e.chaos import Storm, schedule
from tests.e2e.fleet import NGINX, Fleet, running_fleet
from tests.e2e.patient import Client, Question
from tests.e2e.test_bad_input import refusal
from tests.running import RunningService, eventually

SHORT = 24  # tokens

pytestmark = pytest.mark.skipif(not NGINX, reason="nginx is not installed")


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    folder = tmp_path_factory.mktemp("fleet")
    with running_fleet(folder, REELTALK_DISCONNECT_GRACE="60", REELTALK_THREADS="1") as fleet:
        yield fleet


@pytest.mark.timeout(600)
def test_a_storm_of_kills_loses_no_upload_turn_or_token(fleet: Fleet) -> None:
    """One kill of each kind; `python -m tests.e2e.chaos` runs more."""
    storm = Storm(fleet, [SAMPLE.read_bytes()], num_clients=6, seed=5, max_tokens=100)
    report = storm.run(list(schedule(1, seed=5)))
    assert report.problems == []
    assert sum(report.kills.values()) == 4
    assert report.num_answers >= 12


def ask_about(fleet: Fleet, content: bytes, *, num_clients: int) -> set[str]:
    """The answers to clients that upload the same file and ask the same question concurrently."""
    question = Question(0, "What is it?", 0.0, 0, SHORT)

    def ask(_: int) -> str:
        client = Client(fleet)
        with contextlib.closing(client):
            return client.ask(client.open_session(client.upload(content)), question).text

    with ThreadPoolExecutor(num_clients) as threads:
        return set(threads.map(ask, range(num_clients)))


def test_32_clients_of_both_replicas_share_one_encoding(fleet: Fleet, tmp_path: Path) -> None:
    fleet.wait_until_ready()
    encoded = fleet.num_encoded()
    answered = [replica.service.metric("reeltalk_request_success_total") for replica in fleet.replicas]
    answers = ask_about(fleet, h264_mp4(tmp_path / "cold.mp4", frames=61).read_bytes(), num_clients=32)
    assert len(answers) == 1
    assert fleet.num_encoded() == encoded + 1
    gained = [
        replica.service.metric("reeltalk_request_success_total") - before
        for replica, before in zip(fleet.replicas, answered, strict=True)
    ]
    assert sum(gained) == 32
    assert all(gained)


def test_32_clients_get_another_encoding_if_its_replica_is_killed(fleet: Fleet, tmp_path: Path) -> None:
    fleet.wait_until_ready()
    content = h264_mp4(tmp_path / "fatal.mp4", frames=62).read_bytes()
    here, there = fleet.replicas
    encoded = there.metric("reeltalk_video_encode_seconds_count")
    workers = [replica.pids("service.workers")[0] for replica in fleet.replicas]
    for pid in workers:
        os.kill(pid, signal.SIGSTOP)  # so that it certainly has the clip
    reply = here.service.client.post("/v1/videos", content=content, headers={"Content-Type": "video/mp4"})
    assert reply.status_code == 201
    with ThreadPoolExecutor(1) as thread:
        asking = thread.submit(ask_about, fleet, content, num_clients=32)
        time.sleep(1)
        holders = [key for key in fleet.redis.client().scan_iter("lease:features:*") if reply.json()["sha256"] in key]
        assert len(holders) == 1
        here.service.process.kill()
        os.kill(workers[0], signal.SIGKILL)  # a stopped process does not notice that its parent has ended
        here.kill()
        os.kill(workers[1], signal.SIGCONT)
        assert len(asking.result(120)) == 1
    assert there.metric("reeltalk_video_encode_seconds_count") == encoded + 1
    here.start()
    fleet.wait_until_ready()
    assert here.metric("reeltalk_video_encode_seconds_count") == 0


def test_without_features_and_file_a_question_is_refused_as_gone(fleet: Fleet, tmp_path: Path) -> None:
    fleet.wait_until_ready()
    service = fleet.replicas[0].service
    video = service.upload(h264_mp4(tmp_path / "gone.mp4", frames=63))
    session_id = service.open_session(video["id"])
    [file] = fleet.media.rglob(video["sha256"])
    file.unlink()
    service.ask(session_id, "What is it?", max_tokens=2)  # the features are still cached
    store = fleet.redis.client()
    assert store.delete(*store.scan_iter(f"features:*:{video['sha256']}")) == 1
    for stream in (False, True):  # also as an error response, not as a stream
        body = {"content": "And now?", "stream": stream}
        reply = service.client.post(f"/v1/sessions/{session_id}/messages", json=body)
        assert refusal(reply, 410) == "video_gone"


def test_a_deleted_video_is_deleted_at_every_replica(fleet: Fleet, tmp_path: Path) -> None:
    fleet.wait_until_ready()
    here, there = (replica.service for replica in fleet.replicas)
    video = here.upload(h264_mp4(tmp_path / "erased.mp4", frames=64))
    session_id = here.open_session(video["id"])
    with here.stream(session_id, "Tell me all.", max_tokens=1800, ignore_eos=True) as stream:
        answer_id = next(stream).data["id"]
        next(event for event in stream if event.name == "delta")
        assert there.client.delete(f"/v1/videos/{video['id']}").status_code == 200
        *_, last = stream
    assert last.data["error"]["code"] == "answer_not_found"
    eventually(lambda: here.metric("reeltalk_num_requests_running") == 0, timeout=5)
    store = fleet.redis.client()
    about = (video["id"], video["sha256"], session_id, answer_id)
    eventually(lambda: not [key for key in store.scan_iter() if any(name in key for name in about)], timeout=5)
    assert not any(any(name in member for name in about) for member in store.smembers("answers:running"))
    assert list(fleet.media.rglob(f"*{video['sha256']}*")) == []


@pytest.fixture(scope="module")
def brief(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """A fleet with a short grace period."""
    folder = tmp_path_factory.mktemp("brief")
    with running_fleet(folder, REELTALK_DISCONNECT_GRACE="2", REELTALK_THREADS="1") as fleet:
        yield fleet


def seconds_until_idle(service: RunningService) -> float:
    start = time.monotonic()
    while service.metric("reeltalk_num_requests_running") or service.metric("reeltalk_kv_cache_usage_ratio"):
        assert time.monotonic() < start + 20
        time.sleep(0.02)
    return time.monotonic() - start


def test_disconnecting_frees_the_engine_after_the_grace_period_and_cancelling_at_once(brief: Fleet) -> None:
    here, there = (replica.service for replica in brief.replicas)
    video_id = here.upload(SAMPLE)["id"]

    def begin(session_id: str) -> str:
        with here.stream(session_id, "Tell me all.", max_tokens=1800, ignore_eos=True) as stream:
            answer_id: str = next(stream).data["id"]
            next(event for event in stream if event.name == "delta")
            eventually(lambda: here.metric("reeltalk_kv_cache_usage_ratio") > 0)
            return answer_id

    begin(here.open_session(video_id))
    assert 1 < seconds_until_idle(here) < 3  # the grace period plus less than a second for a step and the response

    for service in (here, there):
        with here.stream(here.open_session(video_id), "Tell me all.", max_tokens=1800, ignore_eos=True) as stream:
            answer_id = next(stream).data["id"]
            next(event for event in stream if event.name == "delta")
            eventually(lambda: here.metric("reeltalk_kv_cache_usage_ratio") > 0)
            service.client.post(f"/v1/answers/{answer_id}/cancel")
            assert seconds_until_idle(here) < 1.0
            assert list(stream)[-1].data["finish_reason"] == "abort"

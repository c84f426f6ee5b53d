"""A replica that drains announces it, refuses new work, and hands running answers over to another replica."""

import signal
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx2
import pytest

from service.commands.demo import SAMPLE
from tests.e2e.chaos import Storm
from tests.e2e.fleet import NGINX, Fleet, running_fleet
from tests.e2e.test_bad_input import refusal
from tests.running import RunningService, eventually, parse_events, running


def state_of(service: RunningService) -> str:
    state: str = service.client.get("/admin/drain").json()["state"]
    return state


def test_a_draining_replica_announces_it_then_refuses_and_completes_answers(tmp_path: Path, drawn: Path) -> None:
    with running(tmp_path / "data", REELTALK_DRAIN_NOTICE="2", REELTALK_SHUTDOWN_TIMEOUT="60") as service:
        video_id = service.upload(drawn)["id"]
        first, second = service.open_session(video_id), service.open_session(video_id)
        with service.stream(first, "Tell me all.", max_tokens=1500, ignore_eos=True) as stream:
            next(stream)
            assert state_of(service) == "accepting"
            reply = service.client.post("/admin/drain")
            assert (reply.status_code, reply.json()["num_answers"]) == (202, 1)
            reply = service.client.get("/readyz")
            assert (reply.status_code, reply.json()["missing"]) == (503, ["draining"])
            service.ask(second, "Still there?", max_tokens=2)  # accepted during the notice
            eventually(lambda: state_of(service) == "draining")
            reply = service.client.post(f"/v1/sessions/{second}/messages", json={"content": "And now?"})
            assert refusal(reply, 503) == "draining"
            assert reply.headers["Retry-After"]
            reply = service.client.post("/v1/videos", content=b"x", headers={"Content-Type": "video/mp4"})
            assert refusal(reply, 503) == "draining"
            *_, last = stream
        assert last.data["usage"]["completion_tokens"] == 1500
        eventually(lambda: state_of(service) == "drained")
        assert service.client.get("/healthz").status_code == 200


def test_an_upload_that_outlasts_the_shutdown_timeout_is_refused_with_retry_after(tmp_path: Path) -> None:
    with running(tmp_path / "data", REELTALK_SHUTDOWN_TIMEOUT="1") as service:
        host, port = service.url.removeprefix("http://").split(":")
        head = f"POST /v1/videos HTTP/1.1\r\nHost: {host}\r\nContent-Type: video/mp4\r\nContent-Length: 9999\r\n\r\n"
        with socket.create_connection((host, int(port))) as connection:
            connection.sendall(head.encode() + b"the first bytes")
            eventually(lambda: service.metric("reeltalk_http_requests_active") == 2)
            service.process.send_signal(signal.SIGINT)
            with connection.makefile("rb") as reply:
                output = reply.read().decode()
        assert output.startswith("HTTP/1.1 503 ")
        assert "retry-after: 1" in output.lower()
        assert '"draining"' in output
        assert service.process.wait(15) == 0
    assert not any("Traceback" in line for line in service.output)


def test_a_forwarded_request_cannot_drain(service: RunningService) -> None:
    for headers in ({"X-Forwarded-For": "127.0.0.1"}, {"Forwarded": "for=127.0.0.1"}):
        assert refusal(service.client.post("/admin/drain", headers=headers), 403) == "not_local"
    assert state_of(service) == "accepting"


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[Fleet]:
    if not NGINX:
        pytest.skip("nginx is not installed")
    with running_fleet(tmp_path, REELTALK_SHUTDOWN_TIMEOUT="1", REELTALK_THREADS="1") as fleet:
        yield fleet


@pytest.mark.timeout(300)
def test_a_rollout_drops_no_stream(fleet: Fleet) -> None:
    """Both replicas are restarted while clients read answers that take longer than the shutdown timeout."""
    report = Storm(fleet, [SAMPLE.read_bytes()], num_clients=4, seed=3, max_tokens=300).run(["rollout"])
    assert report.problems == []
    assert report.num_answers >= 8


def test_a_handed_over_answer_continues_at_once(fleet: Fleet) -> None:
    """The other replica takes over without waiting for the lease to expire."""
    here, there = fleet.replicas
    session_id = here.service.open_session(here.service.upload(SAMPLE)["id"])
    with here.service.stream(session_id, "Tell me all.", max_tokens=1800, ignore_eos=True) as stream:
        events = [next(stream) for _ in range(10)]
        here.service.process.send_signal(signal.SIGTERM)
        events += stream  # the stream is closed without a last event
    assert events[-1].name == "delta"
    with there.service.client.stream(
        "GET", f"/v1/answers/{events[0].data['id']}/events", headers={"Last-Event-ID": str(events[-1].id)}
    ) as reply:
        events += parse_events(reply.iter_lines())
    assert [event.id for event in events] == list(range(1, len(events) + 1))
    assert events[-1].data["usage"]["completion_tokens"] == 1800
    assert there.metric("reeltalk_answer_takeovers_total") == 1


def test_a_response_without_stream_names_the_handed_over_answer(fleet: Fleet) -> None:
    here, there = fleet.replicas
    session_id = here.service.open_session(here.service.upload(SAMPLE)["id"])
    body = {"content": "Tell me all.", "max_tokens": 1800, "ignore_eos": True, "temperature": 0}
    with ThreadPoolExecutor(1) as thread:
        asking = thread.submit(here.service.client.post, f"/v1/sessions/{session_id}/messages", json=body)
        eventually(lambda: here.metric("reeltalk_num_requests_running") == 1)
        here.service.process.send_signal(signal.SIGTERM)
        reply = asking.result(30)
    assert refusal(reply, 503) == "answer_moved"
    [answer_id] = [word for word in reply.json()["error"]["message"].replace(":", " ").split() if "ans_" in word]
    reply = httpx2.get(f"http://127.0.0.1:{there.port}/v1/answers/{answer_id}")
    assert reply.json()["status"] == "in_progress"

"""A service with one encode worker and two generate workers answers correctly and survives a killed worker."""

import os
import re
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import pytest

from tests.clips import h264_mp4
from tests.e2e.test_bad_input import refusal
from tests.e2e.test_right_answers import SAMPLES, TALKS, talk
from tests.running import RunningService, eventually, running, started

NUM_SESSIONS = 8


@pytest.fixture(scope="module")
def split(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningService]:
    with running(tmp_path_factory.mktemp("split"), "--workers", "encode,generate*2") as service:
        yield service


def running_at(service: RunningService, worker: int) -> int:
    found = re.search(
        rf'^reeltalk_num_requests_running{{model_name="tiny",worker="{worker}"}} (\S+)',
        service.client.get("/metrics").text,
        re.M,
    )
    return 0 if found is None else int(float(found[1]))


def test_eight_concurrent_sessions_get_correct_answers(split: RunningService) -> None:
    videos = {name: split.upload(SAMPLES / name)["id"] for name in TALKS}
    names = [name for _, name in zip(range(NUM_SESSIONS), [*TALKS] * NUM_SESSIONS, strict=False)]

    def converse(name: str) -> list[str]:
        return talk(split, videos[name], [question for question, _ in TALKS[name]])

    with ThreadPoolExecutor(NUM_SESSIONS) as threads:
        output = list(threads.map(converse, names))
    assert output == [[answer for _, answer in TALKS[name]] for name in names]
    assert running_at(split, 0) == 0


def test_a_second_turn_reports_its_cached_tokens(split: RunningService, drawn: Path) -> None:
    session_id = split.open_session(split.upload(drawn)["id"])
    hits = split.metric("reeltalk_prefix_cache_hits_total")
    with split.stream(session_id, "What is it?") as stream:
        first = list(stream)[-1].data["usage"]
    second = split.ask(session_id, "And what colour is it?")["usage"]
    cached = second["prompt_tokens_details"]["cached_tokens"]
    assert first["prompt_tokens"] - 16 <= cached < second["prompt_tokens"], "all but the last block of the first turn"
    assert split.metric("reeltalk_prefix_cache_hits_total") - hits >= cached
    assert split.metric("reeltalk_prefix_cache_queries_total") >= first["prompt_tokens"] + second["prompt_tokens"]
    kept = split.client.get(f"/v1/sessions/{session_id}/messages").json()["data"][-1]
    assert kept["usage"] == second


def test_streams_continue_after_a_worker_is_killed(split: RunningService, drawn: Path) -> None:
    video_id = split.upload(drawn)["id"]
    fields = {"temperature": 1.0, "seed": 7, "max_tokens": 300, "ignore_eos": True}
    everybody_reads = Barrier(NUM_SESSIONS + 1, timeout=120)

    def listen(_: int) -> str:
        with split.stream(split.open_session(video_id), "Tell me all.", **fields) as stream:
            events = [next(stream) for _ in range(10)]
            everybody_reads.wait()
            events += stream
        assert events[-1].name == "done", events[-1]
        assert events[-1].data["usage"]["completion_tokens"] == fields["max_tokens"]
        assert [event.id for event in events] == list(range(1, len(events) + 1))
        return "".join(event.data["text"] for event in events if event.name == "delta")

    with ThreadPoolExecutor(NUM_SESSIONS) as threads:
        listening = threads.map(listen, range(NUM_SESSIONS))
        everybody_reads.wait()
        assert min(running_at(split, 1), running_at(split, 2)) > 0, "both have their hands full"
        os.kill(split.child("generate:1"), signal.SIGKILL)
        texts = set(listening)
    assert texts == {listen_alone(split, video_id, fields)}
    eventually(lambda: any("generate:1" in command for command in split.children().values()))


def listen_alone(service: RunningService, video_id: str, fields: dict[str, float]) -> str:
    with service.stream(service.open_session(video_id), "Tell me all.", **fields) as stream:
        return "".join(event.data["text"] for event in stream if event.name == "delta")


def test_an_over_long_question_is_refused_before_its_video_is_encoded(split: RunningService, tmp_path: Path) -> None:
    video = split.upload(h264_mp4(tmp_path / "cold.mp4", frames=37))
    session_id = split.open_session(video["id"])
    assert split.forget_features(video["sha256"]) == 1
    num_encoded = split.metric("reeltalk_video_encode_seconds_count")
    reply = split.client.post(f"/v1/sessions/{session_id}/messages", json={"content": "word " * 6000, "stream": True})
    assert refusal(reply, 422) == "context_length_exceeded"
    assert re.search(r"The prompt has \d+ tokens, but at most \d+ fit", reply.json()["error"]["message"])
    assert split.metric("reeltalk_video_encode_seconds_count") == num_encoded
    assert split.client.get(f"/v1/sessions/{session_id}/messages").json()["data"] == []


def test_a_worker_that_cannot_start_is_reported_while_the_others_work(tmp_path: Path, drawn: Path) -> None:
    with running(tmp_path / "data", REELTALK_WORKERS="all@cpu,all@cuda:77") as service:
        eventually(lambda: service.client.get("/readyz").json()["problems"] != [], timeout=60)
        reply = service.client.get("/readyz")
        assert (reply.status_code, reply.json()["status"]) == (200, "ok")
        [problem] = reply.json()["problems"]
        assert problem.startswith(
            "Worker 1 of the model 'tiny' (all, device cuda:77) does not start: The worker is configured"
        )
        assert service.ask(service.open_session(service.upload(drawn)["id"]), "Still there?")["finish_reason"]


def test_a_service_without_a_worker_that_starts_ends_with_the_cause(tmp_path: Path) -> None:
    (tmp_path / "nowhere").mkdir()
    with started(
        tmp_path / "data", "--checkpoint", str(tmp_path / "nowhere"), "--workers", "encode,generate"
    ) as service:
        assert service.process.wait(90) == 1
        eventually(lambda: any(line.startswith("reeltalk: ") for line in list(service.output)))
    output = [line for line in service.output if line.startswith("reeltalk: ")]
    assert output == [f"reeltalk: {tmp_path}/nowhere/config.json does not exist or is not a JSON file.\n"]
    assert not any("Traceback" in line for line in service.output)

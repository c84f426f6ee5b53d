"""What an operator sees of one upload and one question: series, log lines, spans, from all processes of a replica."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.running import Event, RunningService, eventually, running

QUESTION = "Which colour has the walrus?"


@dataclass
class Watched:
    """A service of two workers after an upload and a question."""

    service: RunningService
    video_id: str
    session_id: str
    answer_id: str
    usage: dict[str, Any]

    @property
    def lines(self) -> list[dict[str, Any]]:
        """The log, without what the terminal is told."""
        return [json.loads(line) for line in self.service.output if line.startswith("{")]

    def line(self, event: str, **fields: str) -> dict[str, Any]:
        """The one line of this event."""
        told = (line for line in self.lines if line["event"] == event)
        [found] = [line for line in told if fields.items() <= line.items()]
        return found


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory, drawn: Path) -> Iterator[Watched]:
    environment = {"REELTALK_LOG_FORMAT": "json", "REELTALK_WORKER_TIMEOUT": "30"}
    data_dir = tmp_path_factory.mktemp("data")
    with running(data_dir, "--workers", "encode,generate", **environment) as service:
        video_id = service.upload(drawn)["id"]
        session_id = service.open_session(video_id)
        with service.stream(session_id, QUESTION, max_tokens=8, ignore_eos=True) as events:
            told: list[Event] = list(events)
        assert told[-1].name == "done"
        answer_id = told[0].data["id"]
        yield Watched(service, video_id, session_id, answer_id, told[-1].data["usage"])


def counted(watched: Watched, histogram: str, labels: str = "") -> tuple[float, float]:
    """How often a histogram has observed something, and the sum of it."""
    metric, name = watched.service.metric, f"reeltalk_{histogram}"
    return metric(f"{name}_count{labels}"), metric(f"{name}_sum{labels}")


def test_an_answer_is_measured_from_the_queue_to_the_last_token(watched: Watched) -> None:
    seconds = {}
    for name in ("queue", "prefill", "decode"):
        number, seconds[name] = counted(watched, f"request_{name}_time_seconds")
        assert number == 1
        assert seconds[name] > 0
    _, first = counted(watched, "time_to_first_token_seconds")
    _, whole = counted(watched, "e2e_request_latency_seconds")
    assert seconds["queue"] + seconds["prefill"] <= first
    assert first + seconds["decode"] <= whole
    assert counted(watched, "request_prompt_tokens") == (1, watched.usage["prompt_tokens"])
    assert counted(watched, "request_generation_tokens") == (1, watched.usage["completion_tokens"])
    mean = seconds["decode"] / (watched.usage["completion_tokens"] - 1)
    assert counted(watched, "request_time_per_output_token_seconds") == (1, pytest.approx(mean))


def test_a_video_is_measured_at_every_stage(watched: Watched) -> None:
    seconds = {}
    for stage in ("fetch", "decode", "preprocess", "encode_queue", "encode"):
        number, seconds[stage] = counted(watched, f"video_{stage}_seconds")
        assert number == 1
        assert seconds[stage] > 0
    assert seconds["preprocess"] < seconds["decode"]


def test_requests_are_counted_by_the_template_of_their_route(watched: Watched) -> None:
    labels = '{method="POST",route="/v1/sessions/{session_id}/messages",status_class="2xx"}'
    number, seconds = counted(watched, "http_request_duration_seconds", labels)
    _, whole = counted(watched, "e2e_request_latency_seconds")
    assert number == 1
    assert seconds > 0.9 * whole, "the stream is part of it"
    metrics = watched.service.client.get("/metrics").text
    assert not [part for part in (watched.video_id, watched.session_id, watched.answer_id) if part in metrics]
    assert watched.service.metric("reeltalk_http_requests_active") == 1, "the one that asks"


def test_every_worker_tells_of_itself(watched: Watched) -> None:
    metric = watched.service.metric
    assert metric("reeltalk_workers_configured") == metric("reeltalk_workers_ready") == 2
    for worker in ("0", "1"):
        name = f'reeltalk_worker_resident_memory_bytes{{worker="{worker}"}}'
        eventually(lambda name=name: metric(name) > 10e6)
    assert metric("process_resident_memory_bytes") > 10e6
    assert 'family="videochat"' in watched.service.client.get("/metrics").text
    assert metric("reeltalk_build_info") == metric("reeltalk_model_info") == 1


def test_lines_of_every_process_carry_the_ids(watched: Watched) -> None:
    asked = watched.line("request", route="/v1/sessions/{session_id}/messages")
    ids = {
        "request_id": asked["request_id"],
        "tenant": "local",
        "session_id": watched.session_id,
        "video_id": watched.video_id,
        "answer_id": watched.answer_id,
    }
    assert asked.items() >= (ids.items() - {("video_id", watched.video_id)})
    assert asked["process"] == "api"
    assert (asked["method"], asked["status"]) == ("POST", 200)
    assert asked["duration_ms"] > 0
    eventually(lambda: any(line["event"] == "answer_generated" for line in watched.lines))
    ended, generated = watched.line("answer_ended"), watched.line("answer_generated")
    assert ended.items() >= ids.items()
    assert generated.items() >= ids.items()
    assert (ended["process"], generated["process"]) == ("api", "worker-1")
    assert ended["num_output_tokens"] == generated["num_output_tokens"] == watched.usage["completion_tokens"]
    assert ended["queue_ms"] + ended["prefill_ms"] <= ended["time_to_first_token_ms"] <= ended["duration_ms"]


def test_the_lines_of_an_upload_carry_its_ids(watched: Watched) -> None:
    uploaded = watched.line("request", method="POST", route="/v1/videos")
    ids = {"request_id": uploaded["request_id"], "tenant": "local", "video_id": watched.video_id}
    assert uploaded.items() >= ids.items()
    encoded, computed = watched.line("video_encoded"), watched.line("clip_encoded")
    assert encoded.items() >= ids.items()
    assert computed.items() >= ids.items()
    assert (encoded["process"], computed["process"]) == ("api", "worker-0")
    assert encoded["num_frames"] > 0


def test_no_line_has_a_users_words(watched: Watched, drawn: Path) -> None:
    log = json.dumps(watched.lines)
    assert QUESTION.rsplit(maxsplit=1)[-1] not in log
    assert drawn.name not in log

"""Metrics, log lines and spans of one upload and one question, from all processes of a replica."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from tests.running import Event, RunningService, eventually, running

QUESTION = "Which colour has the walrus?"
CALLER = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
"""The `traceparent` of the client."""


@dataclass(frozen=True)
class Span:
    """One span received by the collector."""

    name: str
    trace_id: str
    id: str
    parent_id: str
    pid: int
    start: int
    end: int
    attributes: dict[str, Any]


class Collector(ThreadingHTTPServer):
    """A collector of OTLP over HTTP."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Receiver)
        self.spans: list[Span] = []

    def take(self, body: bytes) -> None:
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
            received = {each.key: each.value for each in resource.resource.attributes}
            assert received["service.name"].string_value == "reeltalk"
            for span in (span for scope in resource.scope_spans for span in scope.spans):
                attributes = {a.key: getattr(a.value, str(a.value.WhichOneof("value"))) for a in span.attributes}
                ids = (span.trace_id.hex(), span.span_id.hex(), span.parent_span_id.hex())
                times = (span.start_time_unix_nano, span.end_time_unix_nano)
                self.spans.append(Span(span.name, *ids, received["process.pid"].int_value, *times, attributes))


class _Receiver(BaseHTTPRequestHandler):
    server: Collector

    def do_POST(self) -> None:
        assert self.path == "/v1/traces"
        self.server.take(self.rfile.read(int(self.headers["Content-Length"])))
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def collecting() -> Iterator[Collector]:
    with Collector() as collector:
        thread = threading.Thread(target=collector.serve_forever)
        thread.start()
        yield collector
        collector.shutdown()
        thread.join()


@dataclass
class Watched:
    """A service of two workers after an upload and a question."""

    service: RunningService
    video_id: str
    session_id: str
    answer_id: str
    usage: dict[str, Any]
    spans: list[Span]

    @property
    def lines(self) -> list[dict[str, Any]]:
        """The log lines, without messages for the terminal."""
        return [json.loads(line) for line in self.service.output if line.startswith("{")]

    def line(self, event: str, **fields: str) -> dict[str, Any]:
        """The only line of an event."""
        received = (line for line in self.lines if line["event"] == event)
        [found] = [line for line in received if fields.items() <= line.items()]
        return found


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory, drawn: Path) -> Iterator[Watched]:
    environment = {"REELTALK_LOG_FORMAT": "json", "REELTALK_WORKER_TIMEOUT": "30"}
    data_dir = tmp_path_factory.mktemp("data")
    environment |= {"OTEL_BSP_SCHEDULE_DELAY": "200"}
    with (
        collecting() as collector,
        running(
            data_dir,
            "--workers",
            "encode,generate",
            OTEL_EXPORTER_OTLP_ENDPOINT=f"http://127.0.0.1:{collector.server_port}",
            **environment,
        ) as service,
    ):
        service.client.headers["traceparent"] = CALLER
        video_id = service.upload(drawn)["id"]
        session_id = service.open_session(video_id)
        with service.stream(session_id, QUESTION, max_tokens=8, ignore_eos=True) as events:
            received: list[Event] = list(events)
        assert received[-1].name == "done"
        answer_id = received[0].data["id"]
        yield Watched(service, video_id, session_id, answer_id, received[-1].data["usage"], collector.spans)


def counted(watched: Watched, histogram: str, labels: str = "") -> tuple[float, float]:
    """The count and the sum of a histogram."""
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
    assert counted(watched, "request_time_per_output_token_seconds") == pytest.approx((1, mean))


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
    assert seconds > 0.9 * whole, "the stream is included"
    metrics = watched.service.client.get("/metrics").text
    assert not [part for part in (watched.video_id, watched.session_id, watched.answer_id) if part in metrics]
    assert watched.service.metric("reeltalk_http_requests_active") == 1, "only the request for the metrics"


def test_every_worker_reports_its_metrics(watched: Watched) -> None:
    metric = watched.service.metric
    assert metric("reeltalk_workers_configured") == metric("reeltalk_workers_ready") == 2
    for worker in ("0", "1"):
        name = f'reeltalk_worker_resident_memory_bytes{{model_name="tiny",worker="{worker}"}}'
        eventually(partial(lambda name: metric(name) > 10e6, name))
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


def test_no_log_line_contains_text_of_users(watched: Watched, drawn: Path) -> None:
    log = json.dumps(watched.lines)
    assert QUESTION.rsplit(maxsplit=1)[-1] not in log
    assert drawn.name not in log


def test_spans_of_all_processes_are_one_tree_from_the_upload_to_the_last_token(watched: Watched) -> None:
    chat, asked = "chat tiny", "POST /v1/sessions/{session_id}/messages"
    wanted = {chat, asked, "queue", "prefill", "decode", "upload", "encode", "encoder", "POST /v1/videos"}
    eventually(lambda: wanted <= {span.name for span in watched.spans})
    spans = list(watched.spans)
    _, trace_id, caller_id, _ = CALLER.split("-")
    assert {span.trace_id for span in spans} == {trace_id}
    names = {span.id: span.name for span in spans} | {caller_id: "caller"}
    parents = {(names[span.parent_id], span.name) for span in spans}
    assert parents >= {
        ("caller", "POST /v1/videos"),
        ("POST /v1/videos", "upload"),
        ("POST /v1/videos", "decode"),
        ("POST /v1/videos", "encode"),
        ("encode", "encoder"),
        ("caller", asked),
        (asked, chat),
        (chat, "queue"),
        (chat, "prefill"),
        (chat, "decode"),
    }
    found = {(names[span.parent_id], span.name): span for span in spans}
    answer, first, rest = found[asked, chat], found[chat, "prefill"], found[chat, "decode"]
    encoder = found["encode", "encoder"]
    assert watched.service.process.pid == answer.pid
    assert len({answer.pid, encoder.pid, rest.pid}) == 3
    assert first.pid == rest.pid
    assert answer.start <= first.start < first.end <= rest.start + 10_000_000
    assert rest.start < rest.end <= answer.end
    assert answer.attributes["gen_ai.response.id"] == watched.answer_id
    assert answer.attributes["gen_ai.usage.output_tokens"] == watched.usage["completion_tokens"]
    assert QUESTION not in str(spans)


def test_without_a_collector_neither_the_sdk_nor_an_exporter_is_imported() -> None:
    program = (
        "import sys; from service.observability import tracing\n"
        "tracing.configure_tracing()\n"
        "with tracing.span('a'): tracing.record('b', seconds=1)\n"
        "assert tracing.traceparent() is None\n"
        "print([name for name in sys.modules if name.startswith(('opentelemetry.sdk', 'opentelemetry.exporter'))])"
    )
    environ = {name: value for name, value in os.environ.items() if not name.startswith("OTEL_")}
    ran = subprocess.run(
        [sys.executable, "-c", program], env=environ, capture_output=True, text=True, timeout=60, check=True
    )
    assert ran.stdout == "[]\n"

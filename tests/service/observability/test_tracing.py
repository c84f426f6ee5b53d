"""Spans end once, carry no None, and connect processes by their `traceparent`."""

import asyncio

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode

from service.observability import tracing

CALLER = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.fixture
def spans(monkeypatch: pytest.MonkeyPatch) -> InMemorySpanExporter:
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(tracing, "_tracer", provider.get_tracer("test"))
    return exporter


def test_a_span_ends_once_with_what_is_known_at_its_first_end(spans: InMemorySpanExporter) -> None:
    trace = tracing.begin("GET", {"http.request.method": "GET"})
    trace.end({"http.route": "/", "absent": None}, name="GET /", failed=True)
    trace.end({"http.route": "/other"}, name="again")
    [ended] = spans.get_finished_spans()
    assert (ended.name, ended.status.status_code) == ("GET /", StatusCode.ERROR)
    assert dict(ended.attributes or {}) == {"http.request.method": "GET", "http.route": "/"}


async def test_spans_of_tasks_and_of_other_processes_are_children_of_the_current_span(
    spans: InMemorySpanExporter,
) -> None:
    async def child() -> str | None:
        with tracing.span("child"):
            return tracing.traceparent()

    trace = tracing.begin("parent", parent=CALLER)
    with trace.current():
        sent = await asyncio.create_task(child())
    tracing.record("elsewhere", seconds=2, ended_ago=1, parent=sent)
    trace.end()
    found = {span.name: span for span in spans.get_finished_spans()}
    assert {f"{span.context.trace_id:032x}" for span in found.values()} == {CALLER.split("-")[1]}
    parents = {name: span.parent.span_id for name, span in found.items() if span.parent is not None}
    assert parents["child"] == found["parent"].context.span_id
    assert parents["elsewhere"] == found["child"].context.span_id
    assert found["elsewhere"].end_time - found["elsewhere"].start_time == 2_000_000_000  # type: ignore[operator]


def test_an_exception_marks_a_span_as_failed_and_its_text_stays_out(spans: InMemorySpanExporter) -> None:
    with pytest.raises(ValueError, match="secret"), tracing.span("upload"):
        raise ValueError("secret")
    [failed] = spans.get_finished_spans()
    assert failed.status.status_code == StatusCode.ERROR
    assert "secret" not in failed.to_json()


def test_without_a_collector_a_trace_has_no_effect() -> None:
    trace = tracing.Trace()
    with trace.current():
        assert tracing.traceparent() is None
    trace.end(failed=True)

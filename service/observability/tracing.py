"""Traces by OpenTelemetry: one tree of spans from an HTTP request to the last token.

The API of OpenTelemetry does nothing until `configure_tracing` has found a collector in the environment. Spans carry
ids, numbers and codes, never text that a user typed and never the text of an exception.
"""

import contextlib
import importlib.metadata
import os
import time
from collections.abc import Iterator, Mapping
from typing import Literal

import structlog
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import INVALID_SPAN, Span, SpanKind, StatusCode, use_span
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from model.engine.sampling_params import SamplingParams

_log = structlog.get_logger(__name__)

Attributes = Mapping[str, str | int | float | list[str] | None]
"""The attributes of a span; those that are None are left out."""

_ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
_KINDS = {"server": SpanKind.SERVER, "internal": SpanKind.INTERNAL}
_VERSION = importlib.metadata.version("reeltalk")

_tracer = trace.get_tracer("reeltalk", _VERSION)
_propagator = TraceContextTextMapPropagator()


def configure_tracing() -> None:
    """Export the spans of this process if the environment names a collector; call it once, at start-up.

    Reads `OTEL_EXPORTER_OTLP_ENDPOINT` or `OTEL_EXPORTER_OTLP_TRACES_ENDPOINT`. Only then is the SDK imported, which
    takes about half a second. Without the SDK it logs a warning.
    """
    is_off = os.environ.get("OTEL_SDK_DISABLED", "").lower() == "true"
    is_off = is_off or os.environ.get("OTEL_TRACES_EXPORTER") == "none"
    if is_off or not any(os.environ.get(name) for name in _ENDPOINTS):
        return
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError:
        _log.warning("traces_off", advice="for traces: pip install 'reeltalk[otel]'")
        return
    resource: dict[str, str | int] = {"service.version": _VERSION, "process.pid": os.getpid()}
    if "OTEL_SERVICE_NAME" not in os.environ:
        resource["service.name"] = "reeltalk"
    provider = TracerProvider(resource=Resource.create(resource))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    trace.set_tracer_provider(provider)


class Trace:
    """A span in progress, which ends once; without an argument it does nothing."""

    def __init__(self, span: Span = INVALID_SPAN) -> None:
        self._span = span

    @contextlib.contextmanager
    def current(self) -> Iterator[None]:
        """Make it the parent of every span that begins in this block, also in tasks created there."""
        with use_span(self._span, end_on_exit=False, record_exception=False, set_status_on_exception=False):
            yield

    def end(self, attributes: Attributes | None = None, *, name: str | None = None, failed: bool = False) -> None:
        """End the span; a second call has no effect.

        Args:
            attributes: attributes that are known only now.
            name: a name to replace the one that the span began with.
            failed: whether to set the span's status to error.
        """
        if not self._span.is_recording():
            return
        if name is not None:
            self._span.update_name(name)
        self._span.set_attributes(_known(attributes))
        if failed:
            self._span.set_status(StatusCode.ERROR)
        self._span.end()


def begin(
    name: str,
    attributes: Attributes | None = None,
    *,
    kind: Literal["server", "internal"] = "internal",
    parent: str | None = None,
) -> Trace:
    """Begin a span under the current one, or under `parent`, the `traceparent` of another process."""
    return Trace(_tracer.start_span(name, _context(parent), _KINDS[kind], _known(attributes)))


@contextlib.contextmanager
def span(name: str, attributes: Attributes | None = None) -> Iterator[None]:
    """A span that lasts as long as this block; an exception marks it as failed."""
    begun = begin(name, attributes)
    failed = True
    try:
        with begun.current():
            yield
        failed = False
    finally:
        begun.end(failed=failed)


def record(
    name: str,
    attributes: Attributes | None = None,
    *,
    seconds: float,
    ended_ago: float = 0.0,
    parent: str | None = None,
) -> None:
    """Record a span that has ended: it took `seconds`, and its end was `ended_ago` seconds before now."""
    end = time.time_ns() - int(ended_ago * 1e9)
    start = end - int(seconds * 1e9)
    _tracer.start_span(name, _context(parent), attributes=_known(attributes), start_time=start).end(end)


def traceparent() -> str | None:
    """The current span in the format of the W3C, to pass to another process; None if there is no span."""
    carrier: dict[str, str] = {}
    _propagator.inject(carrier)
    return carrier.get("traceparent")


def sampling(params: SamplingParams) -> Attributes:
    """The sampling parameters of an answer, named by OpenTelemetry's conventions for generative models."""
    return {
        "gen_ai.request.max_tokens": params.max_tokens,
        "gen_ai.request.temperature": params.temperature,
        "gen_ai.request.top_p": params.top_p,
        "gen_ai.request.seed": params.seed,
    }


def _context(parent: str | None) -> Context | None:
    """The context of a `traceparent`; None stands for the current context."""
    return None if parent is None else _propagator.extract({"traceparent": parent})


def _known(attributes: Attributes | None) -> dict[str, str | int | float | list[str]]:
    return {name: value for name, value in (attributes or {}).items() if value is not None}

"""Traces by OpenTelemetry, where the environment names a collector: one tree from a request to the last token.

The one door to OpenTelemetry. Without `OTEL_EXPORTER_OTLP_ENDPOINT`, or its like for traces alone, nothing of it is
imported here. Spans carry ids, numbers and codes, never what somebody typed or the text of an exception.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.metadata
import os
import time
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Literal

import structlog

from model.engine.sampling_params import SamplingParams

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.trace import Span, Tracer

_log = structlog.get_logger(__name__)

Attributes = Mapping[str, str | int | float | list[str] | None]
_ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")


class Trace:
    """A span that is under way; of no effect where nobody traces."""

    def __init__(self, span: Span | None = None) -> None:
        self._span = span

    @contextlib.contextmanager
    def current(self) -> Iterator[None]:
        """What begins in this block, tasks included, is a part of it."""
        if self._span is None:
            yield
            return
        from opentelemetry.trace import use_span

        with use_span(self._span, end_on_exit=False, record_exception=False, set_status_on_exception=False):
            yield

    def end(self, attributes: Attributes | None = None, *, name: str | None = None, failed: bool = False) -> None:
        """It is over; what is said of it later is not heard."""
        ended, self._span = self._span, None
        if ended is None:
            return
        if name is not None:
            ended.update_name(name)
        ended.set_attributes(_known(attributes))
        if failed:
            from opentelemetry.trace import StatusCode

            ended.set_status(StatusCode.ERROR)
        ended.end()


def begin(
    name: str,
    attributes: Attributes | None = None,
    *,
    kind: Literal["server", "internal"] = "internal",
    parent: str | None = None,
) -> Trace:
    """A span from now on, under the current one, or under `parent`, a `traceparent` from another process."""
    tracer = _tracer()
    if tracer is None:
        return Trace()
    from opentelemetry.trace import SpanKind

    kinds = {"server": SpanKind.SERVER, "internal": SpanKind.INTERNAL}
    return Trace(tracer.start_span(name, _context(parent), kinds[kind], _known(attributes)))


@contextlib.contextmanager
def span(name: str, attributes: Attributes | None = None) -> Iterator[None]:
    """A span as long as this block."""
    trace = begin(name, attributes)
    failed = True
    try:
        with trace.current():
            yield
        failed = False
    finally:
        trace.end(failed=failed)


def record(
    name: str,
    attributes: Attributes | None = None,
    *,
    seconds: float,
    ended_ago: float = 0.0,
    parent: str | None = None,
) -> None:
    """A span that is over already: it took `seconds`, up to `ended_ago` before now."""
    end = time.time_ns() - int(ended_ago * 1e9)  # before the first call loads the library
    tracer = _tracer()
    if tracer is None:
        return
    done = tracer.start_span(name, _context(parent), attributes=_known(attributes), start_time=end - int(seconds * 1e9))
    done.end(end)


def traceparent() -> str | None:
    """The current span, as another process has to know it; None where nobody traces."""
    if _tracer() is None:
        return None
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    carrier: dict[str, str] = {}
    TraceContextTextMapPropagator().inject(carrier)
    return carrier.get("traceparent")


def sampling(params: SamplingParams) -> Attributes:
    """How an answer's tokens are chosen, by the conventions for generative models."""
    return {
        "gen_ai.request.max_tokens": params.max_tokens,
        "gen_ai.request.temperature": params.temperature,
        "gen_ai.request.top_p": params.top_p,
        "gen_ai.request.seed": params.seed,
    }


def _context(parent: str | None) -> Context | None:
    """The context that a `traceparent` stands for; None is the current one."""
    if parent is None:
        return None
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    return TraceContextTextMapPropagator().extract({"traceparent": parent})


def _known(attributes: Attributes | None) -> dict[str, str | int | float | list[str]]:
    return {name: value for name, value in (attributes or {}).items() if value is not None}


@functools.cache
def _tracer() -> Tracer | None:
    """What makes spans in this process, or None; the environment is read once."""
    is_off = os.environ.get("OTEL_SDK_DISABLED", "").lower() == "true"
    if (
        is_off
        or os.environ.get("OTEL_TRACES_EXPORTER") == "none"
        or not any(os.environ.get(name) for name in _ENDPOINTS)
    ):
        return None
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError:
        _log.warning("traces_off", advice="for traces: pip install 'reeltalk[otel]'")
        return None
    version = importlib.metadata.version("reeltalk")
    told: dict[str, str | int] = {"service.version": version, "process.pid": os.getpid()}
    if "OTEL_SERVICE_NAME" not in os.environ:
        told["service.name"] = "reeltalk"
    provider = TracerProvider(resource=Resource.create(told))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return provider.get_tracer("reeltalk", version)

"""docs/metrics.md lists every Prometheus series of the service with its description, and no other."""

import re
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import cast

from prometheus_client import Counter, Gauge, Histogram
from prometheus_client.metrics import MetricWrapperBase

from service.observability.metrics import Metrics
from service.workers.protocol import ModelInfo, StepDone

_LIST = Path(__file__).parents[3] / "docs" / "metrics.md"
_ROW = re.compile(r"^\| `(\w+)` \| (\w+) \| (.*?) \| (.*?) \| (.*) \|$", re.MULTILINE)


def test_the_list_has_every_series_with_its_kind_unit_and_meaning() -> None:
    metrics = Metrics()
    served = {
        (
            family.name + ("_total" if family.type == "counter" else ""),
            family.type,
            _labels(metrics, family.name),
            _unit(family.name),
            family.documentation,
        )
        for family in metrics.registry.collect()
    }
    listed = [row for row in _ROW.findall(_LIST.read_text()) if sys.platform == "linux" or row[0].startswith("reel")]
    assert sorted(listed) == sorted(served)


def test_the_series_of_a_model_begin_at_zero_and_end_when_it_is_unloaded() -> None:
    metrics = Metrics()
    tiny, large = metrics.of_model("tiny"), metrics.of_model("large")
    value = metrics.registry.get_sample_value
    assert value("reeltalk_prompt_tokens_total", {"model_name": "large"}) == 0
    large.show_memory(1, resident_bytes=5, device_bytes=0)
    large.show_end(finish_reason="stop", seconds=1, decode_seconds=0.5, num_prompt_tokens=3, num_tokens=2)
    assert value("reeltalk_prompt_tokens_total", {"model_name": "large"}) == 3
    metrics.by_model.forget("large")
    large.show_memory(1, resident_bytes=0, device_bytes=0)  # the last report of a worker may come later
    assert 'model_name="large"' not in metrics.render().decode()
    tiny.answer_takeovers.inc()
    assert value("reeltalk_answer_takeovers_total", {"model_name": "tiny"}) == 1
    metrics.by_model.remember("large")
    assert metrics.of_model("large") is not large
    assert value("reeltalk_prompt_tokens_total", {"model_name": "large"}) == 0


def test_nothing_that_an_unloaded_model_still_counts_is_exported() -> None:
    """Its completions end, and its workers report, after it is gone; a model of the same name begins at zero."""
    metrics = Metrics()
    old = metrics.of_model("large")
    step = StepDone(deltas=(), num_running=1, num_waiting=1, kv_cache_usage=0.5, num_preemptions=1)

    def count_everything() -> None:
        for late in (old, metrics.of_model("large")):
            for series in vars(late).values():
                if isinstance(series, Histogram):
                    series.observe(1)
                elif isinstance(series, Counter | Gauge):
                    series.inc()
            late.show_end(finish_reason="stop", seconds=1, decode_seconds=1, num_prompt_tokens=3, num_tokens=2)
            late.show_model(cast("ModelInfo", SimpleNamespace(family="videochat", dtype="float32", quantization=None)))
            late.show_memory(1, resident_bytes=5, device_bytes=5)
            late.show_step(1, step, before=step)

    metrics.by_model.forget("large")
    count_everything()
    assert 'model_name="large"' not in metrics.render().decode()
    metrics.by_model.remember("large")
    new = metrics.of_model("large")
    before = _series_of_models(metrics)
    old.show_end(finish_reason="stop", seconds=1, decode_seconds=1, num_prompt_tokens=3, num_tokens=2)
    old.show_step(1, step, before=step)
    assert _series_of_models(metrics) == before
    new.show_end(finish_reason="stop", seconds=1, decode_seconds=1, num_prompt_tokens=3, num_tokens=2)
    assert metrics.registry.get_sample_value("reeltalk_prompt_tokens_total", {"model_name": "large"}) == 3


def _series_of_models(metrics: Metrics) -> list[str]:
    return [line for line in metrics.render().decode().splitlines() if "model_name=" in line and "_created" not in line]


def _labels(metrics: Metrics, name: str) -> str:
    """The labels in the format of the list."""
    declared = (*vars(metrics).values(), *vars(metrics.by_model).values())
    labels = next((series._labelnames for series in declared if _named(series) == name), ())
    return ", ".join(f"`{label}`" for label in labels) or "–"


def _named(series: object) -> str | None:
    return series._name if isinstance(series, MetricWrapperBase) else None


def _unit(name: str) -> str:
    for suffix in ("seconds", "bytes", "ratio"):
        if name.endswith(f"_{suffix}"):
            return suffix
    return "count"

"""The Prometheus metrics of a replica, one registry for each app; names and buckets follow vLLM's."""

import importlib.metadata
import platform

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

from service.observability.model_metrics import MEDIA_BUCKETS, ModelMetrics, ModelSeries

_HTTP = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


class Metrics:
    """All metrics of one replica."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.by_model = ModelSeries(self.registry)
        """The metrics with a label `model_name`."""
        self.video_upload = self._histogram("video_fetch_seconds", "Time to receive an upload.", MEDIA_BUCKETS)
        self.video_decode = self._histogram(
            "video_decode_seconds", "Time to probe, seek and decode a video, including preprocessing.", MEDIA_BUCKETS
        )
        self.video_preprocess = self._histogram(
            "video_preprocess_seconds", "Time to resize the sampled frames of a video.", MEDIA_BUCKETS
        )
        self.video_failures = Counter(
            "reeltalk_video_failures", "Videos whose preparation failed.", ["code"], registry=self.registry
        )
        self.build_info = Gauge(
            "reeltalk_build_info",
            "Always 1; the labels are the versions of Reeltalk and Python.",
            ["version", "python"],
            registry=self.registry,
        )
        self.build_info.labels(importlib.metadata.version("reeltalk"), platform.python_version()).set(1)
        self.media_bytes = Gauge(
            "reeltalk_media_bytes", "Size of all uploaded files at the last measurement.", registry=self.registry
        )
        self.media_removed = Counter(
            "reeltalk_media_removed", "Uploaded files removed by retention.", ["reason"], registry=self.registry
        )
        self.admission_rejections = Counter(
            "reeltalk_admission_rejections", "Requests refused before any work.", ["reason"], registry=self.registry
        )
        self.http_requests = Counter(
            "reeltalk_http_requests", "HTTP responses.", ["method", "route", "status"], registry=self.registry
        )
        self.http_request_duration = Histogram(
            "reeltalk_http_request_duration_seconds",
            "From the headers of a request to the last byte of its response, including streams.",
            ["method", "route", "status_class"],
            buckets=_HTTP,
            registry=self.registry,
        )
        self.http_requests_active = self._gauge("http_requests_active", "HTTP requests in progress, including streams.")
        self.decode_sandbox = Gauge(
            "reeltalk_decode_sandbox",
            "Whether a layer of the sandbox of decode processes works on this machine.",
            ["layer"],
            registry=self.registry,
        )
        self.num_queued_sequences = self._gauge(
            "num_queued_sequences", "Accepted sequences that wait for their first token."
        )
        self.num_queued_tokens = self._gauge("num_queued_tokens", "Prompt tokens of the queued sequences.")
        ProcessCollector(registry=self.registry)  # `process_resident_memory_bytes` and others, of the API process only

    def of_model(self, name: str) -> ModelMetrics:
        """Return the metrics of one model, by its name."""
        return self.by_model.of(name)

    def show_response(self, *, method: str, route: str, status: int, seconds: float) -> None:
        """Count an HTTP response that has ended; `route` is the template of the path, never the path itself."""
        method = method if method in _METHODS else "other"
        self.http_requests.labels(method, route, str(status)).inc()
        self.http_request_duration.labels(method, route, f"{status // 100}xx").observe(seconds)

    def render(self) -> bytes:
        """Render all metrics in the text format of Prometheus."""
        return generate_latest(self.registry)

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
        return Histogram(f"reeltalk_{name}", text, buckets=buckets, registry=self.registry)

    def _gauge(self, name: str, text: str) -> Gauge:
        return Gauge(f"reeltalk_{name}", text, registry=self.registry)

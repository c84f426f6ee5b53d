"""The Prometheus metrics of a replica, one registry for each app; names and buckets follow vLLM's."""

import importlib.metadata
import platform
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

if TYPE_CHECKING:
    from service.workers.protocol import ModelInfo, StepDone


_TTFT = (
    0.001,
    0.005,
    0.01,
    0.02,
    0.04,
    0.06,
    0.08,
    0.1,
    0.25,
    0.5,
    0.75,
    1,
    2.5,
    5,
    7.5,
    10,
    20,
    40,
    80,
    160,
    640,
    2560,
)
_ITL = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80)
_LATENCY = (0.3, 0.5, 0.8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120, 240, 480, 960, 1920, 7680)
_MEDIA = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 40, 80, 160)
_HTTP = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
_TOKENS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000, 20_000, 50_000, 100_000)
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


class Metrics:
    """All metrics of one replica."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.time_to_first_token = self._histogram(
            "time_to_first_token_seconds", "From a question to the first token of its answer.", _TTFT
        )
        self.inter_token_latency = self._histogram(
            "inter_token_latency_seconds", "Time between two tokens of an answer.", _ITL
        )
        self.e2e_request_latency = self._histogram(
            "e2e_request_latency_seconds", "From a question to the end of its answer.", _LATENCY
        )
        self.request_queue_time = self._histogram(
            "request_queue_time_seconds", "Time an answer waits for the batch after its videos are ready.", _LATENCY
        )
        self.request_prefill_time = self._histogram(
            "request_prefill_time_seconds", "From joining the batch to the first token of an answer.", _LATENCY
        )
        self.request_decode_time = self._histogram(
            "request_decode_time_seconds", "From the first token of an answer to the last.", _LATENCY
        )
        self.request_time_per_output_token = self._histogram(
            "request_time_per_output_token_seconds", "Mean time between the tokens of an ended answer.", _ITL
        )
        self.request_prompt_tokens = self._histogram(
            "request_prompt_tokens", "Prompt tokens of an ended answer, including video tokens.", _TOKENS
        )
        self.request_generation_tokens = self._histogram(
            "request_generation_tokens", "Generated tokens of an ended answer.", _TOKENS
        )
        self.video_upload = self._histogram("video_fetch_seconds", "Time to receive an upload.", _MEDIA)
        self.video_decode = self._histogram(
            "video_decode_seconds", "Time to probe, seek and decode a video, including preprocessing.", _MEDIA
        )
        self.video_preprocess = self._histogram(
            "video_preprocess_seconds", "Time to resize the sampled frames of a video.", _MEDIA
        )
        self.video_encode_queue = self._histogram(
            "video_encode_queue_seconds", "Time the frames of a video wait for the encoder.", _MEDIA
        )
        self.video_failures = Counter(
            "reeltalk_video_failures", "Videos whose preparation failed.", ["code"], registry=self.registry
        )
        self.video_encode = self._histogram("video_encode_seconds", "Time of the encoder for a video.", _MEDIA)
        self.feature_cache_queries = self._counter("feature_cache_queries", "Look-ups of cached features.")
        self.feature_cache_hits = self._counter("feature_cache_hits", "Look-ups that found features.")
        self.feature_cache_corrupt = self._counter("feature_cache_corrupt", "Cached values that failed their checks.")
        self.feature_cache_errors = self._counter("feature_cache_errors", "Look-ups that failed because of Redis.")
        self.prompt_tokens = self._counter("prompt_tokens", "Tokens of prompts, including video tokens.")
        self.generation_tokens = self._counter("generation_tokens", "Generated tokens.")
        self.answer_takeovers = self._counter(
            "answer_takeovers", "Answers taken over from a replica that failed or shut down."
        )
        self.worker_restarts = self._counter("worker_restarts", "Restarts of worker processes that ended.")
        self.workers_configured = self._gauge("workers_configured", "Worker processes in the configuration.")
        self.workers_ready = self._gauge("workers_ready", "Worker processes that accept jobs.")
        self.worker_resident_memory = self._worker_gauge(
            "worker_resident_memory_bytes", "Main memory of a worker process at its last heartbeat."
        )
        self.worker_device_memory = self._worker_gauge(
            "worker_device_memory_bytes", "GPU memory that a worker process has allocated for tensors."
        )
        self.build_info = Gauge(
            "reeltalk_build_info",
            "Always 1; the labels are the versions of Reeltalk and Python.",
            ["version", "python"],
            registry=self.registry,
        )
        self.build_info.labels(importlib.metadata.version("reeltalk"), platform.python_version()).set(1)
        self.model_info = Gauge(
            "reeltalk_model_info",
            "Always 1; the labels describe the loaded model.",
            ["model", "family", "dtype", "quantization"],
            registry=self.registry,
        )
        self.media_bytes = Gauge(
            "reeltalk_media_bytes", "Size of all uploaded files at the last measurement.", registry=self.registry
        )
        self.media_removed = Counter(
            "reeltalk_media_removed", "Uploaded files removed by retention.", ["reason"], registry=self.registry
        )
        self.request_success = Counter(
            "reeltalk_request_success", "Ended answers.", ["finished_reason"], registry=self.registry
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
        self.encode_batch_clips = self._histogram(
            "encode_batch_clips", "Number of clips in the encoder's batch of a clip.", (1, 2, 4, 8, 16, 32, 64)
        )
        self.prefix_cache_queries = self._counter(
            "prefix_cache_queries", "Prompt tokens looked up in the prefix cache."
        )
        self.prefix_cache_hits = self._counter("prefix_cache_hits", "Prompt tokens found in the prefix cache.")
        self.num_requests_running = self._worker_gauge("num_requests_running", "Sequences in the engine's batch.")
        self.num_requests_waiting = self._worker_gauge("num_requests_waiting", "Sequences waiting for the batch.")
        self.kv_cache_usage = self._worker_gauge(
            "kv_cache_usage_ratio", "Share of the KV cache blocks that sequences use."
        )
        self.num_preemptions = Counter(
            "reeltalk_num_preemptions", "Preemptions of sequences.", ["worker"], registry=self.registry
        )
        self.num_queued_sequences = self._gauge(
            "num_queued_sequences", "Accepted sequences that wait for their first token."
        )
        self.num_queued_tokens = self._gauge("num_queued_tokens", "Prompt tokens of the queued sequences.")
        ProcessCollector(registry=self.registry)  # `process_resident_memory_bytes` and others, of the API process only

    def show_response(self, *, method: str, route: str, status: int, seconds: float) -> None:
        """Count an HTTP response that has ended; `route` is the template of the path, never the path itself."""
        method = method if method in _METHODS else "other"
        self.http_requests.labels(method, route, str(status)).inc()
        self.http_request_duration.labels(method, route, f"{status // 100}xx").observe(seconds)

    def show_end(
        self,
        *,
        finish_reason: str,
        seconds: float,
        decode_seconds: float | None,
        num_prompt_tokens: int,
        num_tokens: int,
    ) -> None:
        """Count an answer that has ended.

        Args:
            finish_reason: why the answer ended.
            seconds: from the question to the end of the answer.
            decode_seconds: from the first token to the last; None if the answer has no token.
            num_prompt_tokens: tokens of the prompt; 0 if the answer failed and the number is not known.
            num_tokens: generated tokens.
        """
        self.request_success.labels(finish_reason).inc()
        self.e2e_request_latency.observe(seconds)
        self.prompt_tokens.inc(num_prompt_tokens)
        self.generation_tokens.inc(num_tokens)
        if decode_seconds is None:
            return
        if num_prompt_tokens:
            self.request_prompt_tokens.observe(num_prompt_tokens)
        self.request_generation_tokens.observe(num_tokens)
        self.request_decode_time.observe(decode_seconds)
        if num_tokens > 1 and decode_seconds:  # beam search emits all tokens together, in 0 seconds
            self.request_time_per_output_token.observe(decode_seconds / (num_tokens - 1))

    def show_model(self, info: "ModelInfo") -> None:
        """Publish the loaded model."""
        self.model_info.labels(info.name, info.family, info.dtype, info.quantization or "none").set(1)

    def show_memory(self, worker: int, *, resident_bytes: int, device_bytes: int) -> None:
        """Publish the memory of a worker process, in bytes; both are 0 after it has ended."""
        self.worker_resident_memory.labels(str(worker)).set(resident_bytes)
        self.worker_device_memory.labels(str(worker)).set(device_bytes)

    def show_step(self, worker: int, step: "StepDone", *, before: "StepDone") -> None:
        """Publish the state of a worker's engine after a step; `before` is the previous step."""
        label = str(worker)
        self.num_requests_running.labels(label).set(step.num_running)
        self.num_requests_waiting.labels(label).set(step.num_waiting)
        self.kv_cache_usage.labels(label).set(step.kv_cache_usage)
        self.num_preemptions.labels(label).inc(step.num_preemptions - before.num_preemptions)

    def render(self) -> bytes:
        """Render all metrics in the text format of Prometheus."""
        return generate_latest(self.registry)

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
        return Histogram(f"reeltalk_{name}", text, buckets=buckets, registry=self.registry)

    def _counter(self, name: str, text: str) -> Counter:
        return Counter(f"reeltalk_{name}", text, registry=self.registry)

    def _gauge(self, name: str, text: str) -> Gauge:
        return Gauge(f"reeltalk_{name}", text, registry=self.registry)

    def _worker_gauge(self, name: str, text: str) -> Gauge:
        return Gauge(f"reeltalk_{name}", text, ["worker"], registry=self.registry)

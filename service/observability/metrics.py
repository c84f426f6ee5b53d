"""What the service measures, for Prometheus. One registry per app; names and buckets follow vLLM's stems."""

import importlib.metadata
import platform

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

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
    """The series of one replica."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.time_to_first_token = self._histogram(
            "time_to_first_token_seconds", "From the question to the first text of its answer.", _TTFT
        )
        self.inter_token_latency = self._histogram(
            "inter_token_latency_seconds", "Between two tokens of an answer.", _ITL
        )
        self.e2e_request_latency = self._histogram(
            "e2e_request_latency_seconds", "From the question to the end of its answer.", _LATENCY
        )
        self.request_queue_time = self._histogram(
            "request_queue_time_seconds", "From an answer whose videos are ready to its place in the batch.", _LATENCY
        )
        self.request_prefill_time = self._histogram(
            "request_prefill_time_seconds", "From an answer's place in the batch to its first token.", _LATENCY
        )
        self.request_decode_time = self._histogram(
            "request_decode_time_seconds", "From the first token of an answer to its last.", _LATENCY
        )
        self.request_time_per_output_token = self._histogram(
            "request_time_per_output_token_seconds", "Of an ended answer, the mean time between its tokens.", _ITL
        )
        self.request_prompt_tokens = self._histogram(
            "request_prompt_tokens", "Tokens of the prompt of an ended answer, video tokens included.", _TOKENS
        )
        self.request_generation_tokens = self._histogram(
            "request_generation_tokens", "Tokens generated for an ended answer.", _TOKENS
        )
        self.video_upload = self._histogram("video_fetch_seconds", "Receiving an upload.", _MEDIA)
        self.video_decode = self._histogram("video_decode_seconds", "Probing, seeking and decoding a video.", _MEDIA)
        self.video_preprocess = self._histogram(
            "video_preprocess_seconds", "Of decoding, resizing the sampled frames.", _MEDIA
        )
        self.video_encode_queue = self._histogram(
            "video_encode_queue_seconds", "From a video's frames to the call of the encoder that they are in.", _MEDIA
        )
        self.video_failures = Counter(
            "reeltalk_video_failures", "Videos whose preparation failed.", ["code"], registry=self.registry
        )
        self.video_encode = self._histogram("video_encode_seconds", "Encoder and Q-Former of a video.", _MEDIA)
        self.feature_cache_queries = self._counter("feature_cache_queries", "Look-ups of cached features.")
        self.feature_cache_hits = self._counter("feature_cache_hits", "Look-ups that found features.")
        self.feature_cache_corrupt = self._counter("feature_cache_corrupt", "Cached values that failed their checks.")
        self.feature_cache_errors = self._counter("feature_cache_errors", "Look-ups the store could not serve.")
        self.prompt_tokens = self._counter("prompt_tokens", "Tokens of prompts, video tokens included.")
        self.generation_tokens = self._counter("generation_tokens", "Tokens generated.")
        self.answer_takeovers = self._counter("answer_takeovers", "Answers taken over from an owner that died or left.")
        self.worker_restarts = self._counter("worker_restarts", "Worker processes started again after a death.")
        self.workers_configured = self._gauge("workers_configured", "Worker processes there shall be.")
        self.workers_ready = self._gauge("workers_ready", "Worker processes that take jobs.")
        self.worker_resident_memory = self._worker_gauge(
            "worker_resident_memory_bytes", "Main memory of a worker process, at its last sign of life."
        )
        self.worker_device_memory = self._worker_gauge(
            "worker_device_memory_bytes", "Memory of a GPU that a worker process holds for tensors."
        )
        self.build_info = Gauge(
            "reeltalk_build_info", "Always 1: what runs.", ["version", "python"], registry=self.registry
        )
        self.build_info.labels(importlib.metadata.version("reeltalk"), platform.python_version()).set(1)
        self.model_info = Gauge(
            "reeltalk_model_info",
            "Always 1: the model that is loaded.",
            ["model", "family", "dtype", "quantization"],
            registry=self.registry,
        )
        self.media_bytes = Gauge(
            "reeltalk_media_bytes", "Bytes of all uploaded files, at the last look.", registry=self.registry
        )
        self.media_removed = Counter(
            "reeltalk_media_removed", "Uploaded files removed by retention.", ["reason"], registry=self.registry
        )
        self.request_success = Counter(
            "reeltalk_request_success", "Answers ended.", ["finished_reason"], registry=self.registry
        )
        self.admission_rejections = Counter(
            "reeltalk_admission_rejections", "Requests refused before any work.", ["reason"], registry=self.registry
        )
        self.http_requests = Counter(
            "reeltalk_http_requests", "HTTP responses.", ["method", "route", "status"], registry=self.registry
        )
        self.http_request_duration = Histogram(
            "reeltalk_http_request_duration_seconds",
            "From a request's head to the last byte of its response, a stream's included.",
            ["method", "route", "status_class"],
            buckets=_HTTP,
            registry=self.registry,
        )
        self.http_requests_active = self._gauge("http_requests_active", "HTTP requests being served, streams included.")
        self.decode_sandbox = Gauge(
            "reeltalk_decode_sandbox",
            "Whether a wall around decode children holds on this machine.",
            ["layer"],
            registry=self.registry,
        )
        self.encode_batch_clips = self._histogram(
            "encode_batch_clips", "Clips in the call of the encoder that a clip was in.", (1, 2, 4, 8, 16, 32, 64)
        )
        self.prefix_cache_queries = self._counter("prefix_cache_queries", "Tokens of prompts looked up in KV caches.")
        self.prefix_cache_hits = self._counter("prefix_cache_hits", "Tokens of prompts that a KV cache had.")
        self.num_requests_running = self._worker_gauge("num_requests_running", "Sequences in the engine's batch.")
        self.num_requests_waiting = self._worker_gauge(
            "num_requests_waiting", "Sequences waiting for a place in the batch."
        )
        self.kv_cache_usage = self._worker_gauge("kv_cache_usage_ratio", "Blocks that sequences hold, of all.")
        self.num_preemptions = Counter(
            "reeltalk_num_preemptions", "Sequences that gave up their blocks.", ["worker"], registry=self.registry
        )
        self.num_queued_sequences = self._gauge(
            "num_queued_sequences", "Sequences accepted, here or in the engine, that wait for their first token."
        )
        self.num_queued_tokens = self._gauge("num_queued_tokens", "Tokens of the prompts of those sequences.")
        ProcessCollector(registry=self.registry)  # of the API process alone: `process_resident_memory_bytes` and others

    def show_response(self, *, method: str, route: str, status: int, seconds: float) -> None:
        """An HTTP response has ended. `route` is a template: labels never hold what a client made up."""
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
        """An answer has ended `seconds` after its question; `decode_seconds` is None where it had no token."""
        self.request_success.labels(finish_reason).inc()
        self.e2e_request_latency.observe(seconds)
        self.prompt_tokens.inc(num_prompt_tokens)
        self.generation_tokens.inc(num_tokens)
        if decode_seconds is None:
            return
        if num_prompt_tokens:  # who failed in mid-answer does not tell
            self.request_prompt_tokens.observe(num_prompt_tokens)
        self.request_generation_tokens.observe(num_tokens)
        self.request_decode_time.observe(decode_seconds)
        if num_tokens > 1 and decode_seconds:  # a beam search says all at once
            self.request_time_per_output_token.observe(decode_seconds / (num_tokens - 1))

    def show_model(self, info: ModelInfo) -> None:
        """The model is loaded."""
        self.model_info.labels(info.name, info.family, info.dtype, info.quantization or "none").set(1)

    def show_memory(self, worker: int, *, resident_bytes: int, device_bytes: int) -> None:
        """What a worker process has of main memory and of a GPU's; nothing once it has ended."""
        self.worker_resident_memory.labels(str(worker)).set(resident_bytes)
        self.worker_device_memory.labels(str(worker)).set(device_bytes)

    def show_step(self, worker: int, step: StepDone, *, before: StepDone) -> None:
        """What a worker's step told, and the step before it."""
        label = str(worker)
        self.num_requests_running.labels(label).set(step.num_running)
        self.num_requests_waiting.labels(label).set(step.num_waiting)
        self.kv_cache_usage.labels(label).set(step.kv_cache_usage)
        self.num_preemptions.labels(label).inc(step.num_preemptions - before.num_preemptions)

    def render(self) -> bytes:
        """The text Prometheus scrapes."""
        return generate_latest(self.registry)

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
        return Histogram(f"reeltalk_{name}", text, buckets=buckets, registry=self.registry)

    def _counter(self, name: str, text: str) -> Counter:
        return Counter(f"reeltalk_{name}", text, registry=self.registry)

    def _gauge(self, name: str, text: str) -> Gauge:
        return Gauge(f"reeltalk_{name}", text, registry=self.registry)

    def _worker_gauge(self, name: str, text: str) -> Gauge:
        return Gauge(f"reeltalk_{name}", text, ["worker"], registry=self.registry)

"""The Prometheus metrics that have a label `model_name`, as vLLM's have: of answers, features, caches and workers."""

from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.metrics import MetricWrapperBase

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
_TOKENS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000, 20_000, 50_000, 100_000)
_CLIPS = (1, 2, 4, 8, 16, 32, 64)
MEDIA_BUCKETS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 40, 80, 160)
_MODEL = "model_name"
_WORKER = "worker"


class ModelSeries:
    """The metrics by model of one replica."""

    def __init__(self, registry: CollectorRegistry) -> None:
        def histogram(name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
            return Histogram(f"reeltalk_{name}", text, [_MODEL], buckets=buckets, registry=registry)

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"reeltalk_{name}", text, [_MODEL, *labels], registry=registry)

        def gauge(name: str, text: str, *labels: str) -> Gauge:
            return Gauge(f"reeltalk_{name}", text, [_MODEL, *labels], registry=registry)

        self.time_to_first_token = histogram(
            "time_to_first_token_seconds", "From a question to the first token of its answer.", _TTFT
        )
        self.inter_token_latency = histogram(
            "inter_token_latency_seconds", "Time between two tokens of an answer.", _ITL
        )
        self.e2e_request_latency = histogram(
            "e2e_request_latency_seconds", "From a question to the end of its answer.", _LATENCY
        )
        self.request_queue_time = histogram(
            "request_queue_time_seconds", "Time an answer waits for the batch after its videos are ready.", _LATENCY
        )
        self.request_prefill_time = histogram(
            "request_prefill_time_seconds", "From joining the batch to the first token of an answer.", _LATENCY
        )
        self.request_decode_time = histogram(
            "request_decode_time_seconds", "From the first token of an answer to the last.", _LATENCY
        )
        self.request_time_per_output_token = histogram(
            "request_time_per_output_token_seconds", "Mean time between the tokens of an ended answer.", _ITL
        )
        self.request_prompt_tokens = histogram(
            "request_prompt_tokens", "Prompt tokens of an ended answer, including video tokens.", _TOKENS
        )
        self.request_generation_tokens = histogram(
            "request_generation_tokens", "Generated tokens of an ended answer.", _TOKENS
        )
        self.request_success = counter("request_success", "Ended answers.", "finished_reason")
        self.prompt_tokens = counter("prompt_tokens", "Tokens of prompts, including video tokens.")
        self.generation_tokens = counter("generation_tokens", "Generated tokens.")
        self.answer_takeovers = counter(
            "answer_takeovers", "Answers taken over from a replica that failed or shut down."
        )
        self.prefix_cache_queries = counter("prefix_cache_queries", "Prompt tokens looked up in the prefix cache.")
        self.prefix_cache_hits = counter("prefix_cache_hits", "Prompt tokens found in the prefix cache.")
        self.video_encode_queue = histogram(
            "video_encode_queue_seconds", "Time the frames of a video wait for the encoder.", MEDIA_BUCKETS
        )
        self.video_encode = histogram("video_encode_seconds", "Time of the encoder for a video.", MEDIA_BUCKETS)
        self.encode_batch_clips = histogram(
            "encode_batch_clips", "Number of clips in the encoder's batch of a clip.", _CLIPS
        )
        self.feature_cache_queries = counter("feature_cache_queries", "Look-ups of cached features.")
        self.feature_cache_hits = counter("feature_cache_hits", "Look-ups that found features.")
        self.feature_cache_corrupt = counter("feature_cache_corrupt", "Cached values that failed their checks.")
        self.feature_cache_errors = counter("feature_cache_errors", "Look-ups that failed because of Redis.")
        self.model_info = gauge(
            "model_info", "Always 1; the labels describe the loaded model.", "family", "dtype", "quantization"
        )
        self.workers_configured = gauge("workers_configured", "Worker processes in the configuration.")
        self.workers_ready = gauge("workers_ready", "Worker processes that accept jobs.")
        self.worker_restarts = counter("worker_restarts", "Restarts of worker processes that ended.")
        self.worker_resident_memory = gauge(
            "worker_resident_memory_bytes", "Main memory of a worker process at its last heartbeat.", _WORKER
        )
        self.worker_device_memory = gauge(
            "worker_device_memory_bytes", "GPU memory that a worker process has allocated for tensors.", _WORKER
        )
        self.num_requests_running = gauge("num_requests_running", "Sequences in the engine's batch.", _WORKER)
        self.num_requests_waiting = gauge("num_requests_waiting", "Sequences waiting for the batch.", _WORKER)
        self.kv_cache_usage = gauge("kv_cache_usage_ratio", "Share of the KV cache blocks that sequences use.", _WORKER)
        self.num_preemptions = counter("num_preemptions", "Preemptions of sequences.", _WORKER)
        self._bound: dict[str, ModelMetrics] = {}
        self._forgotten: set[str] = set()

    def of(self, name: str) -> "ModelMetrics":
        """Return the metrics of one model; their series with the value 0 appear with the first call.

        Nothing that those of a forgotten model count is exported.
        """
        if name in self._forgotten:
            return ModelMetrics(self._unread, name)
        if name not in self._bound:
            self._bound[name] = ModelMetrics(self, name)
        return self._bound[name]

    def remember(self, name: str) -> None:
        """Export the series of a model from now on, also if they were removed before."""
        self._forgotten.discard(name)

    def forget(self, name: str) -> None:
        """Remove the series of a model that is no longer served; what its metrics still count is not exported."""
        self._forgotten.add(name)
        if name in self._bound:
            self._bound.pop(name).detach(self._unread)
        for metric in vars(self).values():
            if isinstance(metric, MetricWrapperBase):
                metric.remove_by_labels({_MODEL: name})

    @property
    def _unread(self) -> "ModelSeries":
        """Series of a registry that is not exported."""
        return ModelSeries(CollectorRegistry())


class ModelMetrics:
    """The metrics of one model."""

    def __init__(self, series: ModelSeries, name: str) -> None:
        self._series = series
        self.name = name
        self.time_to_first_token = series.time_to_first_token.labels(name)
        self.inter_token_latency = series.inter_token_latency.labels(name)
        self.request_queue_time = series.request_queue_time.labels(name)
        self.request_prefill_time = series.request_prefill_time.labels(name)
        self.answer_takeovers = series.answer_takeovers.labels(name)
        self.prefix_cache_queries = series.prefix_cache_queries.labels(name)
        self.prefix_cache_hits = series.prefix_cache_hits.labels(name)
        self.video_encode_queue = series.video_encode_queue.labels(name)
        self.video_encode = series.video_encode.labels(name)
        self.encode_batch_clips = series.encode_batch_clips.labels(name)
        self.feature_cache_queries = series.feature_cache_queries.labels(name)
        self.feature_cache_hits = series.feature_cache_hits.labels(name)
        self.feature_cache_corrupt = series.feature_cache_corrupt.labels(name)
        self.feature_cache_errors = series.feature_cache_errors.labels(name)
        self.workers_configured = series.workers_configured.labels(name)
        self.workers_ready = series.workers_ready.labels(name)
        self.worker_restarts = series.worker_restarts.labels(name)
        self._e2e_request_latency = series.e2e_request_latency.labels(name)
        self._request_decode_time = series.request_decode_time.labels(name)
        self._request_time_per_output_token = series.request_time_per_output_token.labels(name)
        self._request_prompt_tokens = series.request_prompt_tokens.labels(name)
        self._request_generation_tokens = series.request_generation_tokens.labels(name)
        self._prompt_tokens = series.prompt_tokens.labels(name)
        self._generation_tokens = series.generation_tokens.labels(name)

    def detach(self, series: ModelSeries) -> None:
        """Create no more series among those that are exported, but among these.

        The series that exist, which the caller has removed from the export, continue to count.
        """
        self._series = series

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
        self._series.request_success.labels(self.name, finish_reason).inc()
        self._e2e_request_latency.observe(seconds)
        self._prompt_tokens.inc(num_prompt_tokens)
        self._generation_tokens.inc(num_tokens)
        if decode_seconds is None:
            return
        if num_prompt_tokens:
            self._request_prompt_tokens.observe(num_prompt_tokens)
        self._request_generation_tokens.observe(num_tokens)
        self._request_decode_time.observe(decode_seconds)
        if num_tokens > 1 and decode_seconds:  # beam search emits all tokens together, in 0 seconds
            self._request_time_per_output_token.observe(decode_seconds / (num_tokens - 1))

    def show_model(self, info: "ModelInfo") -> None:
        """Publish the loaded model."""
        self._series.model_info.labels(self.name, info.family, info.dtype, info.quantization or "none").set(1)

    def show_memory(self, worker: int, *, resident_bytes: int, device_bytes: int) -> None:
        """Publish the memory of a worker process, in bytes; both are 0 after it has ended."""
        self._series.worker_resident_memory.labels(self.name, str(worker)).set(resident_bytes)
        self._series.worker_device_memory.labels(self.name, str(worker)).set(device_bytes)

    def show_step(self, worker: int, step: "StepDone", *, before: "StepDone") -> None:
        """Publish the state of a worker's engine after a step; `before` is the previous step."""
        labels = self.name, str(worker)
        self._series.num_requests_running.labels(*labels).set(step.num_running)
        self._series.num_requests_waiting.labels(*labels).set(step.num_waiting)
        self._series.kv_cache_usage.labels(*labels).set(step.kv_cache_usage)
        self._series.num_preemptions.labels(*labels).inc(step.num_preemptions - before.num_preemptions)

"""What the service measures, for Prometheus. One registry per app; names and buckets follow vLLM's stems."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from service.workers.protocol import StepDone

_TTFT = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80, 160, 640)
_ITL = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80)
_LATENCY = (0.3, 0.5, 0.8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120, 240, 480, 960)
_MEDIA = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 40, 80, 160)


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
        self.video_upload = self._histogram("video_fetch_seconds", "Receiving an upload.", _MEDIA)
        self.video_decode = self._histogram("video_decode_seconds", "Probing, seeking and decoding a video.", _MEDIA)
        self.video_encode = self._histogram("video_encode_seconds", "Encoder and Q-Former of a video.", _MEDIA)
        self.feature_cache_queries = self._counter("feature_cache_queries", "Look-ups of cached features.")
        self.feature_cache_hits = self._counter("feature_cache_hits", "Look-ups that found features.")
        self.feature_cache_corrupt = self._counter("feature_cache_corrupt", "Cached values that failed their checks.")
        self.feature_cache_errors = self._counter("feature_cache_errors", "Look-ups the store could not serve.")
        self.prompt_tokens = self._counter("prompt_tokens", "Tokens of prompts, video tokens included.")
        self.generation_tokens = self._counter("generation_tokens", "Tokens generated.")
        self.answer_takeovers = self._counter("answer_takeovers", "Answers taken over from an owner that died or left.")
        self.worker_restarts = self._counter("worker_restarts", "Worker processes started again after a death.")
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

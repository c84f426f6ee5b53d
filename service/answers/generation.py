"""The record of one generation: tokens, times, usage, trace and log line. No I/O.

An answer in a session has one; a chat completion has one for each choice.
"""

import time
from dataclasses import dataclass, field

import structlog

from model.engine.sampling_params import SamplingParams
from service.answers.admission import Place
from service.answers.logprobs import LogprobBuffer
from service.errors import InternalError, Overloaded, ServiceError, from_code
from service.observability import tracing
from service.observability.model_metrics import ModelMetrics
from service.store.records import CachedTokens, Timings, Usage
from service.workers.protocol import Delta, Refused, TokenLogprobs

_log = structlog.get_logger(__name__)


@dataclass(slots=True, eq=False, kw_only=True)
class Generation:
    """One generation while it runs. Methods change state only."""

    job_id: str
    """The name of its job in the pool."""
    params: SamplingParams
    place: Place
    trace: tracing.Trace = field(default_factory=tracing.Trace)
    started_at: float = field(default_factory=time.monotonic)
    num_resumed_tokens: int = 0
    """Tokens that an earlier owner of the answer generated."""

    num_tokens: int = 0
    """Tokens of the answer so far, resumed ones included."""
    num_prompt_tokens: int = 0
    num_cached_tokens: int = 0
    """Tokens of the prompt that the prefix cache had when the answer began here."""
    finish_reason: str | None = None
    error_code: str | None = None
    _logprobs: LogprobBuffer = field(default_factory=LogprobBuffer)
    _queue_seconds: float | None = None
    _prefill_seconds: float | None = None
    _first_token_at: float | None = None
    _last_token_at: float | None = None

    @property
    def has_tokens(self) -> bool:
        """Whether this replica has seen a token of it."""
        return self._first_token_at is not None

    def begin_trace(self, *, response_id: str, model: str, session_id: str | None = None) -> None:
        """Start the span of this generation, with the attributes of OpenTelemetry's conventions for models."""
        self.trace = tracing.begin(
            f"chat {model}",
            {
                "gen_ai.operation.name": "chat",
                "gen_ai.provider.name": "reeltalk",
                "gen_ai.request.model": model,
                "gen_ai.conversation.id": session_id,
                "gen_ai.response.id": response_id,
                **tracing.sampling(self.params),
            },
        )

    def resume(self, *, num_tokens: int, seconds: float) -> None:
        """Continue a generation that an earlier owner began `seconds` ago."""
        self.num_resumed_tokens = self.num_tokens = num_tokens
        self.started_at -= seconds

    def add(self, delta: Delta, metrics: ModelMetrics) -> tuple[TokenLogprobs, ...]:
        """Add the output of one step.

        Returns:
            The log probabilities of the tokens whose text has been released.
        """
        if delta.queue_seconds is not None:
            self._queue_seconds, self._prefill_seconds = delta.queue_seconds, delta.running_seconds
        if delta.token_ids:
            self._add_tokens(len(delta.token_ids), delta, metrics)
        if delta.finish_reason is not None:
            self.finish_reason = delta.finish_reason
            self.num_prompt_tokens, self.num_cached_tokens = delta.num_prompt_tokens, delta.num_cached_tokens
            self.place.start()
        return self._logprobs.take(delta.logprobs, delta.text)

    def _add_tokens(self, num_tokens: int, delta: Delta, metrics: ModelMetrics) -> None:
        now = time.monotonic()
        if self._last_token_at is not None:
            metrics.inter_token_latency.observe((now - self._last_token_at) / num_tokens)
        else:
            self._first_token_at = now
            self.place.start()
            if not self.num_resumed_tokens:
                metrics.time_to_first_token.observe(now - self.started_at)
        self._last_token_at = now
        self.num_tokens += num_tokens
        self.num_prompt_tokens, self.num_cached_tokens = delta.num_prompt_tokens, delta.num_cached_tokens

    def fail(self, error: ServiceError) -> None:
        """End with an error."""
        self.finish_reason, self.error_code = "error", error.code
        self.place.start()

    def usage(self) -> Usage:
        """The tokens of prompt and answer."""
        return Usage(
            prompt_tokens=self.num_prompt_tokens,
            completion_tokens=self.num_tokens,
            total_tokens=self.num_prompt_tokens + self.num_tokens,
            prompt_tokens_details=CachedTokens(cached_tokens=self.num_cached_tokens),
        )

    def timings(self) -> Timings:
        """The times so far. Tokens of earlier owners are not measured."""
        now, first = time.monotonic(), self._first_token_at
        generating = self._decode_seconds or 0.0
        num_gaps = self.num_tokens - self.num_resumed_tokens - 1
        return Timings(
            time_to_first_token_ms=None if first is None or self.num_resumed_tokens else _ms(first - self.started_at),
            generation_time_ms=_ms(generating),
            mean_itl_ms=_ms(generating / num_gaps) if num_gaps > 0 else None,
            tokens_per_second=round(num_gaps / generating, 2) if num_gaps > 0 and generating > 0 else None,
            total_time_ms=_ms(now - self.started_at),
        )

    def record_end(self, metrics: ModelMetrics, **ids: object) -> None:
        """Count the ended generation in the metrics and log it in numbers, without any of its text."""
        metrics.show_end(
            finish_reason=self.finish_reason or "abort",
            seconds=time.monotonic() - self.started_at,
            decode_seconds=self._decode_seconds,
            num_prompt_tokens=self.num_prompt_tokens,
            num_tokens=self.num_tokens - self.num_resumed_tokens,
        )
        timings = self.timings()
        numbers = {
            "finish_reason": self.finish_reason or "abort",
            "error": self.error_code,
            "num_prompt_tokens": self.num_prompt_tokens,
            "num_cached_tokens": self.num_cached_tokens,
            "num_output_tokens": self.num_tokens,
            "queue_ms": None if self._queue_seconds is None else _ms(self._queue_seconds),
            "prefill_ms": None if self._prefill_seconds is None else _ms(self._prefill_seconds),
            "time_to_first_token_ms": timings.time_to_first_token_ms,
            "decode_ms": timings.generation_time_ms,
            "duration_ms": timings.total_time_ms,
        }
        _log.info("answer_ended", **ids, **{name: value for name, value in numbers.items() if value is not None})

    def close(self, *, otherwise: str = "abort") -> None:
        """Release the place and end the trace; `otherwise` is its finish reason if there is none yet."""
        self.place.release()
        self.trace.end(
            {
                "gen_ai.usage.input_tokens": self.num_prompt_tokens,
                "gen_ai.usage.output_tokens": self.num_tokens,
                "gen_ai.response.finish_reasons": [self.finish_reason or otherwise],
                "error.type": self.error_code,
            },
            failed=self.error_code is not None,
        )

    @property
    def _decode_seconds(self) -> float | None:
        """Seconds from the first token that this replica has seen to the last."""
        first, last = self._first_token_at, self._last_token_at
        return None if first is None or last is None else last - first


def failure_of(output: Delta | Refused) -> ServiceError | None:
    """The error that a worker's output stands for; None if it is no failure."""
    if isinstance(output, Refused):
        return from_code(output.code, output.message)
    if output.finish_reason == "error":
        return InternalError("engine_error", "The model failed on this question.")
    return None


def deadline_exceeded() -> Overloaded:
    """The error of an answer whose time is up, begun or not."""
    return Overloaded("deadline_exceeded", "The answer took longer than its `timeout`, or than this server allows.")


def _ms(seconds: float) -> float:
    return round(seconds * 1000, 3)

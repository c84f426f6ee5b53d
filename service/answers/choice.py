"""One of the answers of a chat completion in the making, and what a completion tells while they are made."""

import time
from dataclasses import dataclass, field

import structlog

from service.answers.logprobs import ToldTokens
from service.errors import InternalError, from_code
from service.observability import tracing
from service.observability.metrics import Metrics
from service.store.records import VideoFrames
from service.workers.protocol import Delta, ModelInfo, Refused, TokenLogprobs

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class Started:
    """The request is accepted; nothing is said yet."""

    id: str
    created_at: float
    model: ModelInfo


@dataclass(frozen=True, kw_only=True, slots=True)
class Seen:
    """The frames of each video that the answers are given on."""

    videos: tuple[VideoFrames, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Gained:
    """What one choice gained; `finish_reason` with its end."""

    index: int
    text: str
    logprobs: tuple[TokenLogprobs, ...]
    finish_reason: str | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Spent:
    """Tokens of the whole completion: the prompt's once, the answers' together."""

    num_prompt_tokens: int
    num_completion_tokens: int
    num_cached_tokens: int
    num_video_tokens: int


Event = Started | Seen | Gained | Spent


@dataclass(slots=True, eq=False)
class Choice:
    """One answer in the making. No I/O."""

    index: int
    started_at: float = field(default_factory=time.monotonic)
    num_prompt_tokens: int = 0
    num_cached_tokens: int = 0
    num_tokens: int = 0
    finish_reason: str | None = None
    trace: tracing.Trace = field(default_factory=tracing.Trace)
    _told: ToldTokens = field(default_factory=ToldTokens)
    _first_token_at: float | None = None
    _last_token_at: float | None = None

    def gain(self, delta: Delta | Refused, metrics: Metrics) -> Gained:
        """Take what a step added.

        Raises:
            ServiceError: the answer has failed.
        """
        if isinstance(delta, Refused):
            self.finish_reason = "error"
            raise from_code(delta.code, delta.message)
        if delta.finish_reason in {"error", "abort"}:
            self.finish_reason = "error"
            raise InternalError("engine_error", "The model failed on this question.")
        if delta.token_ids:
            now = time.monotonic()
            if self._last_token_at is None:
                self._first_token_at = now
                metrics.time_to_first_token.observe(now - self.started_at)
            else:
                metrics.inter_token_latency.observe((now - self._last_token_at) / len(delta.token_ids))
            self._last_token_at = now
        if not self.num_tokens:  # later ones come from a worker that was told of the first
            self.num_cached_tokens = delta.num_cached_tokens
        self.num_tokens += len(delta.token_ids)
        self.num_prompt_tokens = delta.num_prompt_tokens
        self.finish_reason = delta.finish_reason
        return Gained(
            index=self.index,
            text=delta.text,
            logprobs=self._told.take(delta.logprobs, delta.text),
            finish_reason=delta.finish_reason,
        )

    def observe(self, metrics: Metrics) -> None:
        """Count the choice when it has ended or was left, and log it."""
        first, last = self._first_token_at, self._last_token_at
        metrics.show_end(
            finish_reason=self.finish_reason or "abort",
            seconds=time.monotonic() - self.started_at,
            decode_seconds=None if first is None or last is None else last - first,
            num_prompt_tokens=self.num_prompt_tokens,
            num_tokens=self.num_tokens,
        )
        self.trace.end(
            {
                "gen_ai.provider.name": "reeltalk",
                "gen_ai.usage.input_tokens": self.num_prompt_tokens,
                "gen_ai.usage.output_tokens": self.num_tokens,
                "gen_ai.response.finish_reasons": [self.finish_reason or "abort"],
            },
            failed=self.finish_reason == "error",
        )
        _log.info(
            "answer_ended",
            choice=self.index,
            finish_reason=self.finish_reason or "abort",
            num_prompt_tokens=self.num_prompt_tokens,
            num_cached_tokens=self.num_cached_tokens,
            num_output_tokens=self.num_tokens,
            time_to_first_token_ms=None if first is None else round((first - self.started_at) * 1000, 1),
            duration_ms=round((time.monotonic() - self.started_at) * 1000, 1),
        )

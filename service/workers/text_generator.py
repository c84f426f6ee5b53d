"""Generates answers with the engine of a worker. Runs in the worker process; imports torch."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import structlog
import torch

from model.engine.config import EngineConfig, PromptTooLong, check_length
from model.engine.engine import Engine
from model.engine.output import Logprobs, Output
from model.engine.sampling_params import InvalidSampling, SamplingParams
from model.engine.sequence import Condition, TextSegment, VideoSegment
from model.family import EncodedClip, Family, build_condition, build_prompt, count_prompt_tokens
from model.features import Features, unpack
from model.text.conversation import Clip, Conversation, Turn
from service.observability import tracing
from service.workers.protocol import (
    CheckPrompt,
    Delta,
    Generate,
    LikelyToken,
    PromptChecked,
    Refused,
    Report,
    RequestContext,
    StepDone,
    TokenLogprobs,
)

_log = structlog.get_logger(__name__)


class TextGenerator:
    """Adds prompts to the engine, runs its steps, and reports the output of each step.

    Raises:
        ValueError: the KV cache does not fit into memory.
    """

    def __init__(self, family: Family, config: EngineConfig, *, report: Callable[[Report], None]) -> None:
        self._family = family
        self._config = config
        self._report = report
        self._engine = Engine(family.language_model, family.tokenizer, config)
        self._contexts: dict[str, RequestContext] = {}
        self._prefill_seconds: dict[str, float] = {}

    @property
    def has_work(self) -> bool:
        """Whether a sequence is waiting or running."""
        return self._engine.has_work

    def check(self, command: CheckPrompt) -> PromptChecked | Refused:
        """Count a prompt's tokens. Any thread may call this, also during a step."""
        try:
            num_tokens = count_prompt_tokens(self._family, command.conversation)
            check_length(num_tokens, self._config)
        except Exception as error:  # noqa: BLE001  an exception would end the thread that receives commands
            return _refusal(command.job_id, error)
        return PromptChecked(job_id=command.job_id, num_prompt_tokens=num_tokens)

    def add(self, command: Generate) -> None:
        """Add a prompt to the engine; report a prompt that it cannot take."""
        try:
            clips = [
                _encoded(unpack(blob, key=key, parts=self._family.parts), key)
                for blob, key in zip(command.features, command.feature_keys, strict=True)
            ]
            prompt, condition = self._inputs(command.conversation, clips)
            self._engine.add_request(
                command.job_id,
                prompt,
                self._engine_params(command.params),
                output_token_ids=command.output_token_ids,
                priority=command.priority,
                cache_salt=command.cache_salt,
                condition=condition,
            )
            self._contexts[command.job_id] = command.context
        except Exception as error:  # noqa: BLE001  one bad prompt must not end the worker
            self._report(_refusal(command.job_id, error, command.context))

    def abort(self, job_id: str) -> None:
        """Abort an answer; the next step reports its end."""
        self._engine.abort(job_id)

    def step(self) -> None:
        """Run one engine step and report its output."""
        engine = self._engine
        deltas = tuple(_delta(output, self._family.tokenizer.token_bytes) for output in engine.step())
        self._report(
            StepDone(
                deltas=deltas,
                num_running=engine.num_running,
                num_waiting=engine.num_waiting,
                kv_cache_usage=engine.num_held_blocks / engine.num_blocks,
                num_preemptions=engine.num_preemptions,
            )
        )
        for delta in deltas:
            self._trace(delta)
            if delta.finish_reason is not None:
                self._log_end(delta)

    def warm_up(self, features: Features) -> None:
        """Answer a question so that later ones find warm caches: about a clip with these features, if there are any."""
        inputs = self._family.inputs
        parts, count = frozenset(features), 0 if inputs is None else inputs.frames.count
        clips = (Clip(frame_indices=tuple(range(count)), fps=1.0, parts=parts),) if inputs is not None else ()
        question = Conversation(clips=clips, turns=(Turn(role="user", text="What is this?"),))
        prompt, condition = self._inputs(question, [_encoded(features, "warm-up") for _ in clips])
        self._engine.add_request("warm-up", prompt, SamplingParams(max_tokens=2), condition=condition)
        while self._engine.has_work:
            self._engine.step()

    def _inputs(
        self, conversation: Conversation, clips: Sequence[EncodedClip]
    ) -> tuple[Sequence[TextSegment | VideoSegment], Condition | None]:
        """The prompt of a conversation, and its condition."""
        with torch.inference_mode():
            return build_prompt(self._family, conversation, clips), build_condition(self._family, clips)

    def _engine_params(self, params: SamplingParams) -> SamplingParams:
        """Add the template's stop strings, unless the request ignores ends of text.

        `replace` validates the parameters again, since unpickling does not.
        """
        stop = () if params.ignore_eos else self._family.template.stop
        return replace(params, stop=tuple(dict.fromkeys((*stop, *params.stop))))

    def _trace(self, delta: Delta) -> None:
        """Record a prefill span with the first token and a decode span with the last."""
        context = self._contexts.get(delta.job_id)
        if context is None or context.traceparent is None:
            return
        if delta.token_ids and delta.job_id not in self._prefill_seconds:
            self._prefill_seconds[delta.job_id] = delta.running_seconds
            attributes = {
                "reeltalk.prompt_tokens": delta.num_prompt_tokens,
                "reeltalk.cached_tokens": delta.num_cached_tokens,
            }
            tracing.record("prefill", attributes, seconds=delta.running_seconds, parent=context.traceparent)
        if delta.finish_reason is not None:
            prefill_seconds = self._prefill_seconds.pop(delta.job_id, None)
            if prefill_seconds is not None:
                attributes = {"reeltalk.output_tokens": delta.num_output_tokens}
                decode_seconds = delta.running_seconds - prefill_seconds
                tracing.record("decode", attributes, seconds=decode_seconds, parent=context.traceparent)

    def _log_end(self, delta: Delta) -> None:
        context = self._contexts.pop(delta.job_id, None)
        if context is not None:
            _log.info(
                "answer_generated",
                **context.ids,
                finish_reason=delta.finish_reason,
                num_prompt_tokens=delta.num_prompt_tokens,
                num_output_tokens=delta.num_output_tokens,
                running_ms=round(delta.running_seconds * 1000, 1),
            )


def _encoded(features: Features, identity: str) -> EncodedClip:
    return EncodedClip({name: torch.from_numpy(part) for name, part in features.items()}, identity)


def _refusal(job_id: str, error: Exception, context: RequestContext | None = None) -> Refused:
    """The report for a prompt that cannot run; logs errors that are not the user's."""
    match error:
        case PromptTooLong():
            return Refused(job_id=job_id, code="context_length_exceeded", message=str(error))
        case InvalidSampling():
            return Refused(job_id=job_id, code="invalid_value", message=str(error))
        case _:
            ids = {} if context is None else context.ids
            _log.error("question_refused", exc_info=error, **ids)
            return Refused(job_id=job_id, code="engine_error", message="The model cannot take this question.")


def _delta(output: Output, token_bytes: Callable[[int], bytes]) -> Delta:
    return Delta(
        job_id=output.request_id,
        text=output.text,
        token_ids=output.token_ids,
        finish_reason=output.finish_reason,
        num_prompt_tokens=output.num_prompt_tokens,
        num_cached_tokens=min(output.num_cached_tokens, output.num_prompt_tokens),
        num_output_tokens=output.num_output_tokens,
        running_seconds=output.running_seconds,
        logprobs=tuple(_token_logprobs(logprobs, token_bytes) for logprobs in output.logprobs),
    )


def _token_logprobs(logprobs: Logprobs, token_bytes: Callable[[int], bytes]) -> TokenLogprobs:
    return TokenLogprobs(
        LikelyToken(token_bytes(logprobs.token_id), logprobs.logprob),
        tuple(LikelyToken(token_bytes(token_id), logprob) for token_id, logprob in logprobs.top),
    )

"""The engine: continuous batching of many requests on one language model. No HTTP, no Redis, no asyncio.

A step is three calls: the scheduler chooses what to compute, the runner computes it, and each answer takes its logits.
"""

import time
from collections.abc import Iterable
from collections.abc import Sequence as Ordered
from dataclasses import replace

import torch
from transformers import LlamaForCausalLM

from model.engine.answer import RequestAnswer, SampledAnswer, Transcript, Update
from model.engine.beam_search import BeamSearch
from model.engine.config import DuplicateRequest, EngineConfig, InvalidPrompt, PromptTooLong, check_length
from model.engine.detokenizer import Detokenizer, Vocabulary
from model.engine.model_runner import ModelRunner
from model.engine.output import Output
from model.engine.runner import Runner
from model.engine.sampler import next_tokens
from model.engine.sampling_params import SamplingParams
from model.engine.scheduler import Schedule, Scheduler
from model.engine.sequence import Condition, Segment, Sequence, TextSegment, VideoSegment

__all__ = [
    "Condition",
    "DuplicateRequest",
    "Engine",
    "EngineConfig",
    "InvalidPrompt",
    "Output",
    "PromptTooLong",
    "Segment",
    "TextSegment",
    "VideoSegment",
    "check_length",
]


class Engine:
    """Continuous batching: requests join and leave between steps, and no request changes the answer to another.

    Not thread-safe: all calls must come from one thread. After an exception from `step` (out of memory, for example)
    the engine cannot be used any more; a new engine can resume every answer from the token ids of its outputs.

    Raises:
        ValueError: `max_model_len` exceeds the positions of the language model, or too few blocks fit into memory.
    """

    def __init__(self, language_model: LlamaForCausalLM, tokenizer: Vocabulary, config: EngineConfig) -> None:
        runner: Runner = ModelRunner(language_model)
        if config.max_model_len > runner.max_positions:
            raise ValueError(
                f"max_model_len is {config.max_model_len}, but the language model has {runner.max_positions} positions."
            )
        self._config = _with_blocks(config, runner)
        self._tokenizer = tokenizer
        self._runner = runner
        self._scheduler = Scheduler(self._config, half_speed_context=runner.half_speed_context)
        self._runner.allocate(self._config)
        self._answers: dict[str, RequestAnswer] = {}

    @property
    def has_work(self) -> bool:
        """Whether `step` has anything to compute or to report."""
        return self._scheduler.has_work

    @property
    def num_running(self) -> int:
        """Number of sequences that are admitted and not finished."""
        return self._scheduler.num_running

    @property
    def num_waiting(self) -> int:
        """Number of sequences that wait to be admitted."""
        return self._scheduler.num_waiting

    @property
    def num_blocks(self) -> int:
        """Number of blocks of the KV cache."""
        return self._config.num_blocks

    @property
    def num_held_blocks(self) -> int:
        """Number of blocks that sequences hold."""
        return self._scheduler.num_held_blocks

    @property
    def num_preemptions(self) -> int:
        """How often a sequence has lost its blocks to others and had to be computed again."""
        return self._scheduler.num_preemptions

    def add_request(
        self,
        request_id: str,
        prompt: Ordered[Segment],
        params: SamplingParams,
        *,
        output_token_ids: Ordered[int] = (),
        priority: int = 0,
        cache_salt: str = "",
        condition: Condition | None = None,
    ) -> None:
        """Queue a request. `step` returns its outputs under its id, which can be used again once it has finished.

        Args:
            request_id: an id that no unfinished request has.
            prompt: its segments, text and video, in order.
            params: how the answer is sampled.
            output_token_ids: tokens of this answer from the outputs of another engine. The answer continues after them
                exactly as it would have there, and they are not reported again. If they complete the answer, the next
                step reports just that.
            priority: requests of higher priority are admitted first and preempted last.
            cache_salt: only requests of equal salt share cached prefixes, so that neither the time of an answer nor its
                number of cached tokens shows which prompts other clients have sent.
            condition: tensors that the layers use at every token, if the model takes them.

        Raises:
            DuplicateRequest: a request of this id has not finished.
            InvalidPrompt: the prompt is empty, or has token ids, video rows or a condition that do not fit the model.
            PromptTooLong: the prompt and one token of answer exceed `max_model_len`.
        """
        if request_id in self._answers:
            raise DuplicateRequest(request_id)
        self._check_prompt(prompt, output_token_ids)
        self._check_condition(condition)
        num_prompt_tokens = sum(segment.num_tokens for segment in prompt)
        check_length(num_prompt_tokens, self._config)
        max_output_tokens = min(params.max_tokens, self._config.max_model_len - num_prompt_tokens)
        transcript = Transcript(
            Detokenizer(self._tokenizer, params.stop),
            eos_id=None if params.ignore_eos else self._tokenizer.eos_id,
            max_tokens=max_output_tokens,
        )
        finish_reason = None
        for token_id in output_token_ids:
            _, finish_reason = transcript.append(token_id)
            if finish_reason:
                break
        sequence = Sequence(
            request_id=request_id,
            prompt=tuple(prompt),
            params=params,
            max_output_tokens=max_output_tokens,
            output_token_ids=list(output_token_ids[: transcript.num_tokens]),
            finish_reason=finish_reason,
            priority=priority,
            cache_salt=cache_salt,
            condition=condition,
        )
        # A search reports no tokens before its end, so an answer that comes with tokens is not searched for again.
        is_search = params.num_beams > 1 and not output_token_ids
        self._answers[request_id] = (BeamSearch if is_search else SampledAnswer)(sequence, transcript)
        self._scheduler.add(sequence)

    def abort(self, request_id: str) -> bool:
        """End a request. The next step frees its blocks and reports it; returns False if there is no such request."""
        return self._scheduler.abort(request_id)

    def step(self) -> list[Output]:
        """Compute one batch; returns an output for every request that has gained tokens or has ended."""
        schedule = self._scheduler.schedule()
        logits = self._runner.run(schedule)
        return self._postprocess(schedule, logits)

    def check(self) -> None:
        """Assert that every block is held by exactly those sequences that have it in their block tables."""
        self._scheduler.check()

    def _postprocess(self, schedule: Schedule, logits: torch.Tensor) -> list[Output]:
        reasons = {sequence.request_id: sequence.finish_reason for sequence in schedule.ended}
        outputs = [_output(self._answers.pop(each), Update(finish_reason=reason)) for each, reason in reasons.items()]
        sampled = [chunk.sequence for chunk in schedule.chunks if chunk.sampled]
        for sequence, next_token in zip(sampled, next_tokens(logits, sampled), strict=True):
            answer = self._answers.get(sequence.request_id)
            if answer is None:  # the logits of another beam of the request have just ended it
                continue
            update = answer.take(sequence, next_token)
            if update is not None:
                self._apply(answer, update)
                if update.token_ids or update.finish_reason:
                    outputs.append(_output(answer, update))
        return outputs

    def _apply(self, answer: RequestAnswer, update: Update) -> None:
        if update.finish_reason:
            self._scheduler.finish(answer.sequences, update.finish_reason)
            del self._answers[answer.sequence.request_id]
        else:
            answer.sequences = self._scheduler.extend(answer.sequences, update.continuations)

    def _check_prompt(self, prompt: Iterable[Segment], output_token_ids: Ordered[int]) -> None:
        """Refuse token ids and rows that would make the forward pass fail for the whole batch."""
        segments = [*prompt, TextSegment(tuple(output_token_ids))]
        if not any(segment.num_tokens for segment in segments[:-1]):
            raise InvalidPrompt("The prompt is empty.")
        for segment in segments:
            if isinstance(segment, VideoSegment):
                if segment.embeddings.ndim != 2 or segment.embeddings.shape[1] != self._runner.hidden_size:
                    shape = list(segment.embeddings.shape)
                    raise InvalidPrompt(f"Video tokens have shape {shape}, not [n, {self._runner.hidden_size}].")
            elif any(not 0 <= token_id < self._runner.vocab_size for token_id in segment.token_ids):
                raise InvalidPrompt(f"A token id is not in the vocabulary of {self._runner.vocab_size}.")

    def _check_condition(self, condition: Condition | None) -> None:
        """Refuse tensors that do not fit into the table of conditions."""
        if condition is None:
            return
        shapes = {name: tuple(tensor.shape) for name, tensor in condition.tensors.items()}
        if shapes != self._config.condition_shapes:
            raise InvalidPrompt(f"The condition has tensors {shapes}, not {dict(self._config.condition_shapes)}.")


def _output(answer: RequestAnswer, update: Update) -> Output:
    sequence = answer.sequence
    return Output(
        request_id=sequence.request_id,
        text=update.text,
        token_ids=update.token_ids,
        finish_reason=update.finish_reason,
        num_prompt_tokens=sequence.num_prompt_tokens,
        num_cached_tokens=sequence.num_cached_tokens,
        num_output_tokens=answer.num_output_tokens,
        running_seconds=0.0 if sequence.admitted_at is None else time.monotonic() - sequence.admitted_at,
        logprobs=update.logprobs,
    )


def _with_blocks(config: EngineConfig, runner: Runner) -> EngineConfig:
    """The configuration with a number of blocks, if it has none yet: as many as are useful and fit into memory."""
    if config.num_blocks:
        return config
    num_blocks = min(config.max_useful_blocks, runner.num_fitting_blocks(config))
    if num_blocks < config.blocks_for(config.max_model_len):
        raise ValueError(
            f"There is memory for {num_blocks * config.block_size} tokens of KV cache, less than the longest sequence"
            f" has ({config.max_model_len}). Set a smaller max_model_len, or free memory."
        )
    return replace(config, num_blocks=num_blocks)

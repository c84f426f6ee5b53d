"""The engine: many requests on one language model, a step at a time. No HTTP, no Redis, no asyncio."""

import time
from collections.abc import Iterable
from collections.abc import Sequence as Ordered
from dataclasses import dataclass, replace

import torch
from transformers import LlamaForCausalLM

from model.engine.beam_search import Beam, BeamSearch, Continuation
from model.engine.config import DuplicateRequest, EngineConfig, InvalidPrompt, PromptTooLong, check_length
from model.engine.detokenizer import Detokenizer, Vocabulary
from model.engine.model_runner import ModelRunner
from model.engine.output import FinishReason, Logprobs, Output
from model.engine.runner import Runner
from model.engine.sampler import explain, sample
from model.engine.sampling_params import SamplingParams
from model.engine.scheduler import Schedule, Scheduler
from model.engine.sequence import Segment, Sequence, TextSegment, VideoSegment

__all__ = [
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


@dataclass(frozen=True, slots=True, eq=False)
class _Answer:
    """A sequence and the text it has become so far."""

    sequence: Sequence
    detokenizer: Detokenizer

    def append(self, token_id: int, eos_id: int) -> tuple[str, FinishReason | None]:
        """Add one token; returns the text that may leave, and why the answer ends if it does."""
        self.sequence.output_token_ids.append(token_id)
        is_end = token_id == eos_id and not self.sequence.params.ignore_eos
        text = "" if is_end else self.detokenizer.feed(token_id)
        reason: FinishReason | None = None
        if is_end or self.detokenizer.stopped:
            reason = "stop"
        elif len(self.sequence.output_token_ids) == self.sequence.max_output_tokens:
            reason = "length"
        return (text + self.detokenizer.flush() if reason else text), reason

    def output(self, *, text: str = "", token_ids: tuple[int, ...] = (), logprobs: tuple[Logprobs, ...] = ()) -> Output:
        sequence = self.sequence
        return Output(
            request_id=sequence.request_id,
            text=text,
            token_ids=token_ids,
            finish_reason=sequence.finish_reason,
            num_prompt_tokens=sequence.num_prompt_tokens,
            num_cached_tokens=sequence.num_cached_tokens,
            num_output_tokens=len(sequence.output_token_ids),
            running_seconds=0.0 if sequence.admitted_at is None else time.monotonic() - sequence.admitted_at,
            logprobs=logprobs,
        )


class Engine:
    """Continuous batching: requests join and leave between steps, and none changes another's answer.

    Not thread-safe: one thread adds, aborts and steps. An exception out of `step` (no memory left, say) makes
    it unusable; every answer can go on in a new engine from the token ids that its outputs carried.

    Raises:
        ValueError: `max_model_len` exceeds the positions the language model was made for.
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
        self._answers: dict[str, _Answer] = {}
        self._searches: dict[str, BeamSearch] = {}

    @property
    def has_work(self) -> bool:
        """Whether `step` has anything to do or to report."""
        return self._scheduler.has_work

    @property
    def num_running(self) -> int:
        """Sequences admitted and not ended."""
        return self._scheduler.num_running

    @property
    def num_waiting(self) -> int:
        """Sequences not yet admitted."""
        return self._scheduler.num_waiting

    @property
    def num_blocks(self) -> int:
        """Blocks of the KV cache."""
        return self._config.num_blocks

    @property
    def num_held_blocks(self) -> int:
        """Blocks that sequences hold."""
        return self._config.num_blocks - self._scheduler.pool.num_free

    @property
    def num_preemptions(self) -> int:
        """How often a sequence has had to give back its blocks and begin again."""
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
    ) -> None:
        """Queue a request; its outputs come from `step` under its id, free again when it has finished.

        One of higher `priority` is admitted before all that wait with a lower one, and keeps its blocks longer.

        What is computed for a request is found again by requests of the same `cache_salt` only: how soon an answer
        comes, and how many of its tokens were cached, tells nobody what others have asked.

        `output_token_ids` are tokens of this answer that outputs elsewhere have carried, with their text. The
        answer goes on after them exactly as it would have there, and they are not reported again. If they
        complete it, the next step reports just that.

        Raises:
            DuplicateRequest: a request of this id has not finished.
            InvalidPrompt: the prompt is empty, or has ids or video rows that do not fit the model.
            PromptTooLong: prompt and one token of answer exceed `max_model_len`.
        """
        if request_id in self._answers:
            raise DuplicateRequest(request_id)
        self._check_prompt(prompt, output_token_ids)
        num_prompt_tokens = sum(segment.num_tokens for segment in prompt)
        check_length(num_prompt_tokens, self._config)
        sequence = Sequence(
            request_id=request_id,
            prompt=tuple(prompt),
            params=params,
            max_output_tokens=min(params.max_tokens, self._config.max_model_len - num_prompt_tokens),
            priority=priority,
            cache_salt=cache_salt,
        )
        answer = _Answer(sequence, Detokenizer(self._tokenizer, params.stop))
        for token_id in output_token_ids:
            _, sequence.finish_reason = answer.append(token_id, self._tokenizer.eos_id)
            if sequence.finish_reason:
                break
        self._answers[request_id] = answer
        if params.num_beams > 1 and not output_token_ids:
            self._searches[request_id] = BeamSearch(sequence, answer.detokenizer, eos_id=self._tokenizer.eos_id)
        self._scheduler.add(sequence)

    def abort(self, request_id: str) -> bool:
        """End a request at the next step, which frees its cache and reports it; False if there is none."""
        return self._scheduler.abort(request_id)

    def step(self) -> list[Output]:
        """Compute one batch. Returns an output for every sequence that got a token or has ended."""
        schedule = self._scheduler.schedule()
        logits = self._runner.run(schedule.chunks)
        return self._postprocess(schedule, logits)

    def check(self) -> None:
        """Assert that every block is held by exactly those sequences that have it in their tables."""
        self._scheduler.check()

    def _postprocess(self, schedule: Schedule, logits: torch.Tensor) -> list[Output]:
        ended = {sequence.request_id: sequence for sequence in schedule.ended}  # of beams, any speaks for all
        outputs = [self._end(sequence).output() for sequence in ended.values()]
        alone, rows = [], []
        searching: dict[str, BeamSearch] = {}
        for row, sequence in enumerate(chunk.sequence for chunk in schedule.chunks if chunk.sampled):
            if search := self._searches.get(sequence.request_id):
                search.hear(sequence, logits[row])
                searching[sequence.request_id] = search
            else:
                alone.append(sequence)
                rows.append(row)
        if searching:
            logits = logits[rows]
        token_ids = sample(logits, alone)
        for sequence, token_id, logprobs in zip(alone, token_ids, explain(logits, alone, token_ids), strict=True):
            outputs.append(self._accept(self._answers[sequence.request_id], token_id, logprobs))
        for request_id, search in searching.items():
            if search.is_ready or search.is_broken:
                outputs += self._go_on(self._answers[request_id], search)
        return outputs

    def _accept(self, answer: _Answer, token_id: int | None, logprobs: Logprobs | None) -> Output:
        """Give an answer its next token; None, for logits that are not finite, fails it."""
        if token_id is None:
            return self._finish(answer, "error").output()
        text, reason = answer.append(token_id, self._tokenizer.eos_id)
        if reason:
            self._finish(answer, reason)
        return answer.output(text=text, token_ids=(token_id,), logprobs=(logprobs,) if logprobs else ())

    def _go_on(self, answer: _Answer, search: BeamSearch) -> list[Output]:
        """Take a search one token further; its answer, if that is the end."""
        chosen = [] if search.is_broken else search.choose()
        if chosen:
            self._branch(search, chosen)
            return []
        for beam in search.beams[1:]:
            self._scheduler.finish(beam.sequence, "error" if search.is_broken else "stop")
        if search.is_broken:
            return [self._finish(answer, "error", search.beams[0].sequence).output()]
        best = search.best
        answer.sequence.output_token_ids = list(best.token_ids)
        text = best.detokenizer.text + best.detokenizer.flush()
        self._finish(answer, best.reason or "stop", search.beams[0].sequence)
        return [answer.output(text=text, token_ids=best.token_ids)]

    def _branch(self, search: BeamSearch, chosen: Ordered[Continuation]) -> None:
        """Replace the beams of a search: each goes on in its own place, forks, or makes room."""
        parents = {id(each.parent): each.parent for each in chosen}
        for beam in search.beams:
            if id(beam) not in parents:
                self._scheduler.finish(beam.sequence, "stop")
        beams, copies = [], []
        for each in chosen:
            sequence = each.parent.sequence
            if parents.pop(id(each.parent), None) is None:
                sequence = sequence.twin()
                copies += self._scheduler.fork(each.parent.sequence, sequence)
            beams.append(Beam(sequence, each.detokenizer, each.score))
        for beam, each in zip(beams, chosen, strict=True):
            beam.sequence.output_token_ids.append(each.token_ids[-1])
        self._runner.copy_blocks(copies)
        search.adopt(beams)

    def _finish(self, answer: _Answer, reason: FinishReason, sequence: Sequence | None = None) -> _Answer:
        self._scheduler.finish(sequence or answer.sequence, reason)
        answer.sequence.finish_reason = reason
        return self._forget(answer)

    def _end(self, sequence: Sequence) -> _Answer:
        """Forget an answer that the scheduler has let go."""
        answer = self._answers[sequence.request_id]
        if sequence.request_id in self._searches:
            answer.sequence.output_token_ids = []  # nothing was said yet
        answer.sequence.finish_reason = sequence.finish_reason
        return self._forget(answer)

    def _forget(self, answer: _Answer) -> _Answer:
        self._searches.pop(answer.sequence.request_id, None)
        return self._answers.pop(answer.sequence.request_id)

    def _check_prompt(self, prompt: Iterable[Segment], output_token_ids: Ordered[int]) -> None:
        """One bad index would fail the whole batch in the embedding lookup, so it is refused at the door."""
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


def _with_blocks(config: EngineConfig, runner: Runner) -> EngineConfig:
    """The configuration with a number of blocks."""
    if config.num_blocks:
        return config
    num_blocks = min(config.most_blocks, runner.most_blocks(config.block_size))
    if num_blocks < config.blocks_for(config.max_model_len):
        raise ValueError(
            f"There is memory for {num_blocks * config.block_size} tokens of KV cache, less than the longest sequence"
            f" has ({config.max_model_len}). Set a smaller max_model_len, or free memory."
        )
    return replace(config, num_blocks=num_blocks)

"""Answers in the engine: what becomes of the logits that the model computes for a request."""

from typing import NamedTuple, Protocol

from model.engine.detokenizer import Detokenizer
from model.engine.output import FinishReason, Logprobs
from model.engine.sampler import NextToken
from model.engine.sequence import Sequence


class Update(NamedTuple):
    """What an answer gains in one step, and how its sequences go on."""

    text: str = ""
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[Logprobs, ...] = ()
    finish_reason: FinishReason | None = None
    continuations: tuple[tuple[Sequence, int], ...] = ()
    """Pairs of a sequence and its next token, for `Scheduler.extend`; none when the answer is finished."""


class RequestAnswer(Protocol):
    """The answer to one request, sampled or searched for."""

    sequence: Sequence
    """The sequence that was queued for the request."""
    sequences: list[Sequence]
    """The sequences that the scheduler has for the request now."""

    @property
    def num_output_tokens(self) -> int:
        """Tokens that the updates so far have reported, and those that the request came with."""

    def take(self, sequence: Sequence, next_token: NextToken) -> Update | None:
        """Take the logits that follow one of `sequences`, and the token sampled from them.

        Returns:
            What the answer gains; None as long as the logits of other sequences are missing.
        """


class Transcript:
    """The text of an answer while its tokens arrive, and the conditions that end it."""

    def __init__(self, detokenizer: Detokenizer, *, eos_id: int | None, max_tokens: int) -> None:
        self._detokenizer = detokenizer
        self._eos_id = eos_id
        self._max_tokens = max_tokens
        self.num_tokens = 0

    @property
    def text(self) -> str:
        """The text returned so far."""
        return self._detokenizer.text

    def append(self, token_id: int) -> tuple[str, FinishReason | None]:
        """Append a token; returns the text that is final now, and why the answer ends, if it does."""
        self.num_tokens += 1
        is_eos = token_id == self._eos_id
        text = "" if is_eos else self._detokenizer.feed(token_id)
        reason: FinishReason | None = None
        if is_eos or self._detokenizer.stopped:
            reason = "stop"
        elif self.num_tokens == self._max_tokens:
            reason = "length"
        return (text + self._detokenizer.flush() if reason else text), reason

    def copy(self) -> "Transcript":
        """A transcript of the same tokens, to be continued differently."""
        other = Transcript(self._detokenizer.copy(), eos_id=self._eos_id, max_tokens=self._max_tokens)
        other.num_tokens = self.num_tokens
        return other


class SampledAnswer:
    """An answer of one sequence, which gains the sampled token in every step."""

    def __init__(self, sequence: Sequence, transcript: Transcript) -> None:
        self.sequence = sequence
        self.sequences = [sequence]
        self._transcript = transcript

    @property
    def num_output_tokens(self) -> int:
        """As `RequestAnswer.num_output_tokens`."""
        return self._transcript.num_tokens

    def take(self, sequence: Sequence, next_token: NextToken) -> Update:
        """As `RequestAnswer.take`; logits that are not finite end the answer with an error."""
        token_id = next_token.token_id
        if token_id is None:
            return Update(finish_reason="error")
        text, reason = self._transcript.append(token_id)
        return Update(
            text=text,
            token_ids=(token_id,),
            logprobs=(next_token.logprobs,) if next_token.logprobs else (),
            finish_reason=reason,
            continuations=() if reason else ((sequence, token_id),),
        )

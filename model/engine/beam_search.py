"""Beam search for the likeliest answer, with the results of transformers' `generate` with its default settings.

The beams are ordinary sequences, which the scheduler runs, preempts and forks. This module chooses which continuations
of the beams are kept, and when the search ends. It reports no text before the end, because any beam may still be
dropped.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from model.engine.answer import Transcript, Update
from model.engine.output import FinishReason
from model.engine.sampler import NextToken, penalise
from model.engine.sequence import Sequence


@dataclass(slots=True, eq=False)
class Beam:
    """An answer so far that may become the best one."""

    transcript: Transcript
    score: float = 0.0
    """Sum of the log-probabilities of its tokens."""
    logits: torch.Tensor | None = None
    """Logits of its next token [vocab], float32, once they are computed."""


@dataclass(frozen=True, slots=True, eq=False)
class Candidate:
    """A beam, by its index, and one more token."""

    parent: int
    token_id: int
    transcript: Transcript
    score: float
    finish_reason: FinishReason | None


@dataclass(frozen=True, slots=True, eq=False)
class FinishedBeam:
    """A complete answer, and its score after the length penalty."""

    token_ids: tuple[int, ...]
    text: str
    score: float
    finish_reason: FinishReason


class BeamSearch:
    """The answer to a request with `num_beams`: the beams, best first, and the best ones that are finished."""

    def __init__(self, sequence: Sequence, transcript: Transcript) -> None:
        self.sequence = sequence
        self.sequences = [sequence]  # one for each beam, in their order
        self.num_output_tokens = 0
        self._params = sequence.params
        self._beams = [Beam(transcript)]
        self._finished: list[FinishedBeam] = []
        self._num_tokens = 0

    def take(self, sequence: Sequence, next_token: NextToken) -> Update | None:
        """As `RequestAnswer.take`; the search continues by one token when all beams have their logits.

        A beam that was preempted after it had its logits is computed again. If the search has continued in the same
        step, from the logits of before, the new ones are of a beam that has ended or of a token that is known.
        """
        if sequence not in self.sequences or sequence.num_uncomputed_tokens:
            return None
        if next_token.token_id is None:  # the logits are not finite
            return Update(finish_reason="error")
        self._beams[self.sequences.index(sequence)].logits = next_token.logits
        if any(beam.logits is None for beam in self._beams):
            return None
        kept = self._choose()
        if kept:
            self._beams = [Beam(each.transcript, each.score) for each in kept]
            return Update(continuations=tuple((self.sequences[each.parent], each.token_id) for each in kept))
        best = self._finished[0]
        self.num_output_tokens = len(best.token_ids)
        return Update(text=best.text, token_ids=best.token_ids, finish_reason=best.finish_reason)

    def _choose(self) -> list[Candidate]:
        """The beams of the next step, best first; none when no better answer can be expected."""
        num_beams = self._params.num_beams
        # Twice as many as needed: if the best half finishes, the other half goes on.
        candidates = list(self._candidates(2 * num_beams))
        self._num_tokens += 1
        finished = [self._finish(each, each.finish_reason) for each in candidates[:num_beams] if each.finish_reason]
        self._finished = sorted([*self._finished, *finished], key=lambda each: -each.score)[:num_beams]
        unfinished = [each for each in candidates if not each.finish_reason][:num_beams]
        return unfinished if unfinished and self._can_improve(unfinished[0].score) else []

    def _candidates(self, count: int) -> Iterator[Candidate]:
        logits = torch.stack([beam.logits for beam in self._beams if beam.logits is not None])  # [num_beams, vocab]
        logprobs = penalise(logits.log_softmax(dim=-1), self.sequences)
        scores = logprobs + torch.tensor([[beam.score] for beam in self._beams], device=logits.device)
        best = scores.flatten().topk(min(count, scores.numel()))
        for score, index in zip(best.values.tolist(), best.indices.tolist(), strict=True):
            parent, token_id = divmod(index, scores.shape[1])
            transcript = self._beams[parent].transcript.copy()
            _, reason = transcript.append(token_id)
            yield Candidate(parent, token_id, transcript, score, reason)

    def _finish(self, candidate: Candidate, reason: FinishReason) -> FinishedBeam:
        token_ids = (*self.sequences[candidate.parent].output_token_ids, candidate.token_id)
        return FinishedBeam(token_ids, candidate.transcript.text, self._penalised(candidate.score), reason)

    def _can_improve(self, best_score: float) -> bool:
        """Whether the best unfinished beam, if it ended now, would be among the best finished ones."""
        if len(self._finished) < self._params.num_beams:
            return True
        return self._penalised(best_score) > self._finished[-1].score

    def _penalised(self, score: float) -> float:
        return float(score / self._num_tokens**self._params.length_penalty)

"""Beam search over one prompt: a mode of its own, as transformers' `generate` has it with its defaults.

Its beams are sequences like all others, scheduled, preempted and forked by the engine; here stands only which of
their continuations live on, and when no better answer is to be expected. Nothing leaves before the end, since
any beam may still lose.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from model.engine.detokenizer import Detokenizer
from model.engine.output import FinishReason
from model.engine.sampler import penalise
from model.engine.sequence import Sequence


@dataclass(slots=True, eq=False)
class Beam:
    """An answer that may still become the best."""

    sequence: Sequence
    detokenizer: Detokenizer
    score: float = 0.0
    """The sum of its tokens' log-probabilities."""
    logits: torch.Tensor | None = None
    """Of its next token [vocab], float32, once they are computed."""


@dataclass(frozen=True, slots=True, eq=False)
class Continuation:
    """A beam and one more token."""

    parent: Beam
    token_ids: tuple[int, ...]
    """The whole answer."""
    score: float
    detokenizer: Detokenizer
    reason: FinishReason | None
    """Why it goes no further, if it does not."""


class BeamSearch:
    """The beams of one request, best first, and the best answers that have ended."""

    def __init__(self, sequence: Sequence, detokenizer: Detokenizer, *, eos_id: int) -> None:
        self.beams = [Beam(sequence, detokenizer)]
        self._params = sequence.params
        self._max_tokens = sequence.max_output_tokens
        self._eos_id = eos_id
        self._ended: list[tuple[float, Continuation]] = []
        self._num_tokens = 0

    def hear(self, sequence: Sequence, logits: torch.Tensor) -> None:
        """Take the logits [vocab] that follow a beam's last token."""
        (beam,) = (beam for beam in self.beams if beam.sequence is sequence)
        beam.logits = logits

    @property
    def is_ready(self) -> bool:
        """Whether all beams have their logits, so that `choose` can be called."""
        return all(beam.logits is not None for beam in self.beams)

    @property
    def is_broken(self) -> bool:
        """Whether any logits are not finite."""
        return any(beam.logits is not None and not bool(beam.logits.isfinite().all()) for beam in self.beams)

    def choose(self) -> list[Continuation]:
        """The beams of the next step, best first; none once no better answer is to be expected."""
        num_beams = self._params.num_beams
        # Twice as many as needed: should the best of them all end, as many are left to go on.
        candidates = list(self._candidates(2 * num_beams))
        self._num_tokens += 1
        for candidate in candidates[:num_beams]:
            if candidate.reason:
                self._ended.append((self._normalised(candidate.score), candidate))
        self._ended = sorted(self._ended, key=lambda scored: -scored[0])[:num_beams]
        going_on = [candidate for candidate in candidates if not candidate.reason][:num_beams]
        return going_on if going_on and self._can_improve(going_on[0].score) else []

    @property
    def best(self) -> Continuation:
        """The best answer, once `choose` has given none."""
        return self._ended[0][1]

    def adopt(self, beams: list[Beam]) -> None:
        """Go on with these."""
        self.beams = beams

    def _candidates(self, count: int) -> Iterator[Continuation]:
        logits = torch.stack([beam.logits for beam in self.beams if beam.logits is not None])
        assert len(logits) == len(self.beams)
        logprobs = penalise(logits.log_softmax(dim=-1), [beam.sequence for beam in self.beams])
        scores = logprobs + torch.tensor([[beam.score] for beam in self.beams], device=logits.device)
        best = scores.flatten().topk(min(count, scores.numel()))
        for score, place in zip(best.values.tolist(), best.indices.tolist(), strict=True):
            row, token_id = divmod(place, scores.shape[1])
            yield self._continued(self.beams[row], token_id, score)

    def _continued(self, beam: Beam, token_id: int, score: float) -> Continuation:
        detokenizer = beam.detokenizer.copy()
        reason: FinishReason | None = None
        if token_id == self._eos_id and not self._params.ignore_eos:
            reason = "stop"
        else:
            detokenizer.feed(token_id)
            if detokenizer.stopped:
                reason = "stop"
            elif len(beam.sequence.output_token_ids) + 1 == self._max_tokens:
                reason = "length"
        token_ids = (*beam.sequence.output_token_ids, token_id)
        return Continuation(beam, token_ids, score, detokenizer, reason)

    def _can_improve(self, best_running: float) -> bool:
        """Whether a running beam, if it ended now, could be among the best that have ended."""
        if len(self._ended) < self._params.num_beams:
            return True
        return self._normalised(best_running) > self._ended[-1][0]

    def _normalised(self, score: float) -> float:
        return float(score / self._num_tokens**self._params.length_penalty)

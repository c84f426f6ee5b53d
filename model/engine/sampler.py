"""The sampler: chooses the next token of every sequence from its logits, in one batched pass.

Random numbers come from a hash of (seed, position in the answer), not from the state of a generator. So the number that
a token uses does not depend on the other sequences of the batch, on the replica, or on whether the answer was resumed.
"""

from collections import Counter
from collections.abc import Sequence as Ordered
from typing import NamedTuple

import torch

from model.engine.output import Logprobs
from model.engine.sampling_params import SamplingParams
from model.engine.sequence import Sequence

_COLDEST = 1e-5
"""Lower temperatures are treated as 0, because in float32 the likeliest token has all the probability anyway."""
_MASK = 2**64 - 1
_FEW = 256
"""The number of likeliest tokens among which `top_p` usually ends; sorting a whole vocabulary takes long."""


class NextToken(NamedTuple):
    """The token sampled for one sequence, and the logits it was sampled from."""

    token_id: int | None
    """None if the logits are not finite."""
    logprobs: Logprobs | None
    """None if the request did not ask for them."""
    batch_logits: torch.Tensor
    """[num_seqs, vocab], float32, as the model returned them for all sequences of the step."""
    row: int
    """The sequence's row in `batch_logits`."""

    @property
    def logits(self) -> torch.Tensor:
        """[vocab], float32. A view made on demand: one for every sequence of every step is slow on a GPU."""
        return self.batch_logits[self.row]


def next_tokens(logits: torch.Tensor, sequences: Ordered[Sequence]) -> list[NextToken]:
    """Sample the next token of each sequence.

    Args:
        logits: [num_seqs, vocab], float32; row i belongs to `sequences[i]`.
        sequences: their parameters, and the tokens of their answers so far.
    """
    token_ids = sample(logits, sequences)
    explained = zip(token_ids, explain(logits, sequences, token_ids), strict=True)
    return [NextToken(token_id, logprobs, logits, row) for row, (token_id, logprobs) in enumerate(explained)]


@torch.inference_mode()
def sample(logits: torch.Tensor, sequences: Ordered[Sequence]) -> list[int | None]:
    """Choose the next token of each sequence: penalties, then temperature, top_k, top_p, min_p, then the draw.

    Args:
        logits: [num_seqs, vocab], float32; row i belongs to `sequences[i]`.
        sequences: their parameters, and the tokens of their answers so far.

    Returns:
        A token id for each; None where the logits are not finite.
    """
    assert len(logits) == len(sequences)
    if not sequences:
        return []
    # A sum is finite only if all its terms are; in float64, finite float32 terms always have a finite sum.
    finite = logits.sum(dim=-1, dtype=torch.float64).isfinite()  # [num_seqs]
    if not bool(finite.all()):
        logits = logits.masked_fill(~finite[:, None], 0.0)
    logits = penalise(logits, sequences)
    tokens = logits.argmax(dim=-1)  # [num_seqs]
    drawn = [row for row, sequence in enumerate(sequences) if sequence.params.temperature >= _COLDEST]
    if drawn:
        rows = torch.tensor(drawn, device=logits.device)
        tokens[rows] = _draw(logits[rows], [sequences[row] for row in drawn])
    chosen: list[int] = tokens.masked_fill(~finite, -1).tolist()
    return [None if token < 0 else token for token in chosen]


@torch.inference_mode()
def explain(logits: torch.Tensor, sequences: Ordered[Sequence], tokens: Ordered[int | None]) -> list[Logprobs | None]:
    """Log-probabilities of the chosen tokens and of the likeliest ones, as the model returned them, without penalties.

    Args:
        logits: [num_seqs, vocab], float32, as given to `sample`.
        sequences: the sequences given to `sample`.
        tokens: the tokens that `sample` returned.

    Returns:
        One for each sequence; None for those that do not ask for `logprobs`, or have no token.
    """
    found: list[Logprobs | None] = [None] * len(sequences)
    for row, (sequence, token) in enumerate(zip(sequences, tokens, strict=True)):
        num_top = sequence.params.logprobs
        if num_top is None or token is None:
            continue
        logprobs = logits[row].log_softmax(dim=-1)
        values, ids = logprobs.topk(min(num_top, len(logprobs)))
        top = tuple(zip(ids.tolist(), values.tolist(), strict=True))
        found[row] = Logprobs(token_id=token, logprob=float(logprobs[token]), top=top)
    return found


def penalise(logits: torch.Tensor, sequences: Ordered[Sequence]) -> torch.Tensor:
    """Lower the logits of tokens that occur in the answer so far; the prompt does not count.

    First comes the repetition penalty of Keskar et al. (2019), as transformers' `generate` applies it to a prompt of
    embeddings, which is how the published demos call it; then OpenAI's presence penalty, and the frequency penalty once
    for each occurrence.
    """
    penalties = [
        (row, token, params.repetition_penalty, params.presence_penalty + count * params.frequency_penalty)
        for row, params, token_ids in ((row, each.params, each.output_token_ids) for row, each in enumerate(sequences))
        if params.repetition_penalty != 1.0 or params.presence_penalty or params.frequency_penalty
        for token, count in Counter(token_ids).items()
    ]
    if not penalties:
        return logits
    rows, tokens, factors, losses = zip(*penalties, strict=True)
    where = (torch.tensor(rows, device=logits.device), torch.tensor(tokens, device=logits.device))
    factor = torch.tensor(factors, dtype=logits.dtype, device=logits.device)
    loss = torch.tensor(losses, dtype=logits.dtype, device=logits.device)
    scores = logits[where]
    return logits.index_put(where, torch.where(scores < 0, scores * factor, scores / factor) - loss)


def distribution(logits: torch.Tensor, params: Ordered[SamplingParams]) -> torch.Tensor:
    """Probabilities [num_seqs, vocab], float64, of penalised logits after temperature, top_k, top_p and min_p."""
    scaled = logits / _column([p.temperature for p in params], logits)
    restricted = [row for row, p in enumerate(params) if p.top_k or p.top_p < 1 or p.min_p]
    if restricted:
        rows = torch.tensor(restricted, device=logits.device)
        kept = _kept(scaled[rows], [params[row] for row in restricted])
        scaled[rows] = scaled[rows].masked_fill(~kept, -torch.inf)
    return scaled.softmax(dim=-1, dtype=torch.float64)


def uniform(seed: int, position: int) -> float:
    """A pseudorandom number in [0, 1) that depends only on (seed, position)."""
    # 48 bits, so that in float64 the product with a sum of probabilities stays below that sum.
    return (_mix(_mix(seed) ^ position) >> 16) / 2**48


def _draw(logits: torch.Tensor, sequences: Ordered[Sequence]) -> torch.Tensor:
    """Tokens [num_seqs]: the first whose cumulative probability exceeds the random number of the sequence."""
    numbers = [uniform(s.params.seed, len(s.output_token_ids)) for s in sequences]
    # In order of ids, not of probability, because rounding in the last bit may reorder tokens of similar probability.
    cumulative = distribution(logits, [s.params for s in sequences]).cumsum(dim=-1)  # [num_seqs, vocab]
    threshold = _column(numbers, cumulative) * cumulative[:, -1:]
    return (cumulative <= threshold).sum(dim=-1)


def _kept(scaled: torch.Tensor, params: Ordered[SamplingParams]) -> torch.Tensor:
    """Tokens that top_k, then top_p, then min_p keep: bool [num_seqs, vocab]. Of equal logits lower ids are kept."""
    vocab = scaled.shape[-1]
    width = min(vocab, max(_FEW, *(p.top_k for p in params)))
    count, ordered = _nucleus(scaled, params, width)
    if bool((count == width).any()):  # top_p may keep more than `width` tokens
        count, ordered = _nucleus(scaled, params, vocab)
    least = ordered[:, :1] + _column([p.min_p for p in params], scaled).log()
    floor = torch.maximum(ordered.gather(1, count - 1), least)
    above, level = scaled > floor, scaled == floor
    return above | (level & (level.cumsum(dim=-1) <= count - above.sum(dim=-1, keepdim=True)))


def _nucleus(scaled: torch.Tensor, params: Ordered[SamplingParams], width: int) -> tuple[torch.Tensor, torch.Tensor]:
    """How many of the `width` likeliest tokens top_k and top_p keep [num_seqs, 1], and the logits of these in order.

    Only values are compared, so the result does not depend on the order of equal logits.
    """
    vocab = scaled.shape[-1]
    ordered = scaled.topk(width, dim=-1).values  # [num_seqs, width]
    top_k = torch.tensor([[p.top_k or vocab] for p in params], device=scaled.device)
    # 2 where top_p is off, so that rounding drops no token.
    top_p = _column([p.top_p if p.top_p < 1 else 2.0 for p in params], scaled)
    beyond = torch.arange(width, device=scaled.device) >= top_k  # [num_seqs, width]
    considered = ordered.masked_fill(beyond, -torch.inf).logsumexp(dim=-1, keepdim=True)
    whole = torch.where(top_k > width, scaled.logsumexp(dim=-1, keepdim=True), considered)
    probabilities = (ordered - whole).exp()
    kept = ~beyond & (probabilities.cumsum(dim=-1) - probabilities < top_p)
    return kept.sum(dim=-1, keepdim=True), ordered


def _column(numbers: list[float], like: torch.Tensor) -> torch.Tensor:
    return torch.tensor(numbers, dtype=like.dtype, device=like.device)[:, None]


def _mix(value: int) -> int:
    """SplitMix64's output function (Steele, Lea, Flood 2014)."""
    value = (value + 0x9E3779B97F4A7C15) & _MASK
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK
    return value ^ (value >> 31)

"""Chooses the next token of every sequence from its logits, in one batched pass.

Random numbers come from a hash of (seed, position in the answer), never from a generator's state: neither
batch mates nor the replica nor a resumption change which number a token uses.
"""

from collections import Counter
from collections.abc import Sequence as Ordered

import torch

from model.engine.output import Logprobs
from model.engine.sampling_params import SamplingParams
from model.engine.sequence import Sequence

_COLDEST = 1e-5
"""Below this temperature the hottest token takes all in float32 anyway: greedy."""
_MASK = 2**64 - 1
_FEW = 256
"""Of so many of the likeliest tokens top_p is usually made up; sorting a whole vocabulary takes long."""


@torch.inference_mode()
def sample(logits: torch.Tensor, sequences: Ordered[Sequence]) -> list[int | None]:
    """The next token of each sequence: penalties, then temperature, top_k, top_p, min_p, then the draw.

    Args:
        logits: [num_seqs, vocab], float32; row i belongs to `sequences[i]`.
        sequences: their parameters and the tokens they have said.

    Returns:
        A token id for each, None where the logits are not finite.
    """
    assert len(logits) == len(sequences)
    if not sequences:
        return []
    # A sum is finite only where all of its terms are; float64, so that finite terms have a finite one.
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
    """The log-probabilities of the tokens and of their rivals, as the model gave them, before any penalty.

    Args:
        logits: [num_seqs, vocab], float32, as `sample` got them.
        sequences: the sequences it got; those that ask for no logprobs get None.
        tokens: what it chose.
    """
    found: list[Logprobs | None] = [None] * len(sequences)
    for row, (sequence, token) in enumerate(zip(sequences, tokens, strict=True)):
        most = sequence.params.logprobs
        if most is None or token is None:
            continue
        logprobs = logits[row].log_softmax(dim=-1)
        values, ids = logprobs.topk(min(most, len(logprobs)))
        top = tuple(zip(ids.tolist(), values.tolist(), strict=True))
        found[row] = Logprobs(token_id=token, logprob=float(logprobs[token]), top=top)
    return found


def penalise(logits: torch.Tensor, sequences: Ordered[Sequence]) -> torch.Tensor:
    """Make a logit smaller whose token has been said; the prompt does not count.

    First the repetition penalty of Keskar et al. (2019), as in transformers' `generate` on embeddings, as the published
    demos call it; then OpenAI's presence penalty, and the frequency penalty for each time.
    """
    said = [
        (row, token, params.repetition_penalty, params.presence_penalty + count * params.frequency_penalty)
        for row, params, token_ids in ((row, each.params, each.output_token_ids) for row, each in enumerate(sequences))
        if params.repetition_penalty != 1.0 or params.presence_penalty or params.frequency_penalty
        for token, count in Counter(token_ids).items()
    ]
    if not said:
        return logits
    rows, tokens, factors, losses = zip(*said, strict=True)
    where = (torch.tensor(rows, device=logits.device), torch.tensor(tokens, device=logits.device))
    factor = torch.tensor(factors, dtype=logits.dtype, device=logits.device)
    loss = torch.tensor(losses, dtype=logits.dtype, device=logits.device)
    scores = logits[where]
    return logits.index_put(where, torch.where(scores < 0, scores * factor, scores / factor) - loss)


def distribution(logits: torch.Tensor, params: Ordered[SamplingParams]) -> torch.Tensor:
    """Probabilities [num_seqs, vocab], float64, after temperature, top_k, top_p and min_p, of penalised logits."""
    scaled = logits / _column([p.temperature for p in params], logits)
    restricted = [row for row, p in enumerate(params) if p.top_k or p.top_p < 1 or p.min_p]
    if restricted:
        rows = torch.tensor(restricted, device=logits.device)
        kept = _kept(scaled[rows], [params[row] for row in restricted])
        scaled[rows] = scaled[rows].masked_fill(~kept, -torch.inf)
    return scaled.softmax(dim=-1, dtype=torch.float64)


def uniform(seed: int, position: int) -> float:
    """A number in [0, 1) that depends on (seed, position) alone."""
    # 48 bits, so that the number times a sum of probabilities stays below the sum in float64.
    return (_mix(_mix(seed) ^ position) >> 16) / 2**48


def _draw(logits: torch.Tensor, sequences: Ordered[Sequence]) -> torch.Tensor:
    """Tokens [num_seqs]: the one on whose share of the cumulated probability the sequence's number falls."""
    numbers = [uniform(s.params.seed, len(s.output_token_ids)) for s in sequences]
    # In order of ids, not of probability: noise in a logit's last bit may reorder a flat tail.
    cumulated = distribution(logits, [s.params for s in sequences]).cumsum(dim=-1)  # [num_seqs, vocab]
    share = _column(numbers, cumulated) * cumulated[:, -1:]
    return (cumulated <= share).sum(dim=-1)


def _kept(scaled: torch.Tensor, params: Ordered[SamplingParams]) -> torch.Tensor:
    """What top_k, of that top_p, and of that min_p leave: bool [num_seqs, vocab]. Of equals the lower id goes first."""
    vocab = scaled.shape[-1]
    width = min(vocab, max(_FEW, *(p.top_k for p in params)))
    count, ordered = _nucleus(scaled, params, width)
    if bool((count == width).any()):  # of a flat tail more may be kept than were looked at
        count, ordered = _nucleus(scaled, params, vocab)
    least = ordered[:, :1] + _column([p.min_p for p in params], scaled).log()
    floor = torch.maximum(ordered.gather(1, count - 1), least)
    above, level = scaled > floor, scaled == floor
    return above | (level & (level.cumsum(dim=-1) <= count - above.sum(dim=-1, keepdim=True)))


def _nucleus(scaled: torch.Tensor, params: Ordered[SamplingParams], width: int) -> tuple[torch.Tensor, torch.Tensor]:
    """How many tokens top_k and top_p leave of the `width` likeliest [num_seqs, 1], and their logits in order.

    The values are enough: they do not depend on how equals are ordered.
    """
    vocab = scaled.shape[-1]
    ordered = scaled.topk(width, dim=-1).values  # [num_seqs, width]
    top_k = torch.tensor([[p.top_k or vocab] for p in params], device=scaled.device)
    # Twice the whole where top_p is off: rounding must not cut the tail.
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

"""Chooses the next token of every sequence from its logits, in one batched pass.

Random numbers come from a hash of (seed, position in the answer), never from a generator's state: neither
batch mates nor the replica nor a resumption change which number a token uses.
"""

from collections.abc import Sequence as Ordered

import torch

from model.engine.sampling_params import SamplingParams
from model.engine.sequence import Sequence

_COLDEST = 1e-5
"""Below this temperature the hottest token takes all in float32 anyway: greedy."""
_MASK = 2**64 - 1


@torch.inference_mode()
def sample(logits: torch.Tensor, sequences: Ordered[Sequence]) -> list[int | None]:
    """The next token of each sequence: penalties, then temperature, top_k, top_p, then the draw.

    Args:
        logits: [num_seqs, vocab], float32; row i belongs to `sequences[i]`.
        sequences: their parameters and the tokens they have said.

    Returns:
        A token id for each, None where the logits are not finite.
    """
    assert len(logits) == len(sequences)
    if not sequences:
        return []
    finite = logits.isfinite().all(dim=-1)  # [num_seqs]
    logits = penalise(logits, sequences)
    tokens = logits.argmax(dim=-1)  # [num_seqs]
    drawn = [row for row, sequence in enumerate(sequences) if sequence.params.temperature >= _COLDEST]
    if drawn:
        rows = torch.tensor(drawn, device=logits.device)
        tokens[rows] = _draw(logits[rows], [sequences[row] for row in drawn])
    chosen: list[int] = tokens.masked_fill(~finite, -1).tolist()
    return [None if token < 0 else token for token in chosen]


def penalise(logits: torch.Tensor, sequences: Ordered[Sequence]) -> torch.Tensor:
    """Repetition penalty of Keskar et al. (2019): a logit of a token already said is made smaller.

    The prompt does not count, as in transformers' `generate` on embeddings, as the published demos call it.
    """
    said = [
        (row, token, sequence.params.repetition_penalty)
        for row, sequence in enumerate(sequences)
        if sequence.params.repetition_penalty != 1.0
        for token in set(sequence.output_token_ids)
    ]
    if not said:
        return logits
    rows, tokens, penalties = zip(*said, strict=True)
    where = (torch.tensor(rows, device=logits.device), torch.tensor(tokens, device=logits.device))
    penalty = torch.tensor(penalties, dtype=logits.dtype, device=logits.device)
    scores = logits[where]
    return logits.index_put(where, torch.where(scores < 0, scores * penalty, scores / penalty))


def distribution(logits: torch.Tensor, params: Ordered[SamplingParams]) -> torch.Tensor:
    """Probabilities [num_seqs, vocab], float64, after temperature, top_k and top_p, of penalised logits."""
    scaled = logits / _column([p.temperature for p in params], logits)
    restricted = [row for row, p in enumerate(params) if p.top_k or p.top_p < 1]
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
    """What top_k and, of that, top_p leave: bool [num_seqs, vocab]. Of equals the lower id goes first."""
    vocab = scaled.shape[-1]
    top_k = torch.tensor([[p.top_k or vocab] for p in params], device=scaled.device)
    # Twice the whole where top_p is off: rounding must not cut the tail.
    top_p = _column([p.top_p if p.top_p < 1 else 2.0 for p in params], scaled)
    ordered, order = scaled.sort(dim=-1, descending=True, stable=True)
    beyond = torch.arange(vocab, device=scaled.device) >= top_k  # [num_seqs, vocab], by rank
    probabilities = ordered.masked_fill(beyond, -torch.inf).softmax(dim=-1)
    kept = ~beyond & (probabilities.cumsum(dim=-1) - probabilities < top_p)
    return torch.zeros_like(kept).scatter(1, order, kept)


def _column(numbers: list[float], like: torch.Tensor) -> torch.Tensor:
    return torch.tensor(numbers, dtype=like.dtype, device=like.device)[:, None]


def _mix(value: int) -> int:
    """SplitMix64's output function (Steele, Lea, Flood 2014)."""
    value = (value + 0x9E3779B97F4A7C15) & _MASK
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK
    return value ^ (value >> 31)

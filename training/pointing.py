"""Supervises the attention of the language model while it answers.

Without this, the model answers for thousands of steps with the attributes of any thing in the clip before it learns to
find the one that a question names. So one head is trained to attend, at every word of an answer, to the queries of the
things it is about, and another, at the words of a time, to the words of the prompt to copy.
"""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn import functional
from transformers import LlamaForCausalLM
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from model.text.tokenizer import Tokenizer
from training.dialogues import NUMBER, Exchange
from training.prompts import Example
from training.scenes import COLOUR_NAMES

SUPERVISED_HEADS = {"things": (1, 0), "times": (2, 0)}
"""Layer and head that attend to the queries of things, and to the times in the prompt."""
CLAUSE = re.compile(r"(?:^|: |, and |, | and )(?=[Aa] |[Tt]he )")


@dataclass(frozen=True, slots=True)
class AttentionTarget:
    """The positions that one token attends to, evenly: the queries of `colours`, or the tokens `times`."""

    position: int
    """Index in `Example.after` of the token before the answer's token."""
    colours: tuple[int, ...] = ()
    """If there are neither colours nor times, the target is the prompt's first token."""
    times: tuple[int, ...] = ()
    """Indices in `Example.after`."""


def attention_targets(tokenizer: Tokenizer, one: Example, exchanges: Sequence[Exchange]) -> Iterator[AttentionTarget]:
    """Yield the attention target of every word of every answer in a dialogue about a clip."""
    text, starts = _text(tokenizer, one.after)
    sampled = list(NUMBER.finditer(text, 0, starts[one.is_answer.index(True)]))[: len(COLOUR_NAMES)]
    for exchange, (first, end) in zip(exchanges, _answers(one.is_answer), strict=True):
        begin = starts[first] + 1  # after the space
        for position in range(first, end - 1):
            at = max(0, starts[position] + 1 - begin)
            yield AttentionTarget(position - 1, colours=_colours_at(exchange, at))
        for number in NUMBER.finditer(text, begin, starts[end - 1]):
            same = [time for time in sampled if time[0] == number[0]]
            for position in range(first, end - 1):
                if number.start() <= starts[position] + (text[starts[position]] == " ") < number.end():
                    wanted = tuple(
                        other
                        for time in same
                        for other in _positions(starts, text, time)
                        if one.after[other] == one.after[position]
                    )
                    assert wanted, "a time in an answer is a time of the prompt"
                    yield AttentionTarget(position - 1, times=wanted)


def _text(tokenizer: Tokenizer, ids: Sequence[int]) -> tuple[str, list[int]]:
    """Return the text of tokens, and the offset of each token in it."""
    pieces = [tokenizer.token_bytes(token).decode("latin-1") for token in ids]
    starts = [0]
    for piece in pieces:
        starts.append(starts[-1] + len(piece))
    return "".join(pieces), starts


def _answers(is_answer: Sequence[bool]) -> Iterator[tuple[int, int]]:
    """Yield the first index and the end of every answer."""
    edges = [position for position, (one, other) in enumerate(pairwise((False, *is_answer, False))) if one != other]
    yield from zip(edges[::2], edges[1::2], strict=True)


def _positions(starts: Sequence[int], text: str, found: re.Match[str]) -> Iterator[int]:
    for position, start in enumerate(starts[:-1]):
        if found.start() <= start + (text[start : start + 1] == " ") < found.end():
            yield position


def _colours_at(exchange: Exchange, at: int) -> tuple[int, ...]:
    """Return the colours that an answer names in the clause at an offset, or else all that the question is about."""
    edges = [*(found.end() for found in CLAUSE.finditer(exchange.answer)), len(exchange.answer)]
    clause = next((exchange.answer[one:other] for one, other in pairwise(edges) if one <= at < other), "")
    named = [colour for colour in exchange.about if re.search(rf"\b{colour}\b", clause)]
    return tuple(COLOUR_NAMES.index(colour) for colour in named or exchange.about)


@dataclass(slots=True)
class HeadProjections:
    """The queries and keys of the supervised heads in the last forward pass."""

    projected: dict[str, Tensor] = field(default_factory=dict)


@contextmanager
def recorded_projections(llama: LlamaForCausalLM) -> Iterator[HeadProjections]:
    """Record the projections of every forward pass within the block."""
    recorded = HeadProjections()
    hooks = []
    for layer, _ in SUPERVISED_HEADS.values():
        for name in ("q_proj", "k_proj"):
            path = f"layers.{layer}.self_attn.{name}"

            def keep(_: torch.nn.Module, __: tuple[Tensor, ...], out: Tensor, path: str = path) -> None:
                recorded.projected[path] = out

            hooks.append(llama.model.get_submodule(path).register_forward_hook(keep))
    try:
        yield recorded
    finally:
        for hook in hooks:
            hook.remove()


def attention_loss(
    llama: LlamaForCausalLM, recorded: HeadProjections, which: tuple[int, int], wanted: Tensor
) -> Tensor:
    """Return the cross-entropy between a head's attention and its targets.

    `wanted` [n, 4] has row, position, target position, and the number of targets of this position.
    """
    layer, head = which
    size = llama.config.hidden_size // llama.config.num_attention_heads
    q, k = (
        recorded.projected[f"layers.{layer}.self_attn.{name}"][:, None, :, head * size : (head + 1) * size]
        for name in ("q_proj", "k_proj")
    )
    length = q.shape[2]
    cos, sin = llama.model.rotary_emb(q, torch.arange(length)[None])
    q, k = (turned[:, 0] for turned in apply_rotary_pos_emb(q, k, cos, sin))
    later = torch.ones(length, length, dtype=torch.bool).triu(1)
    scores = (q @ k.transpose(1, 2) / size**0.5).masked_fill(later, float("-inf"))
    row, position, at, shared = wanted.unbind(1)
    there = functional.log_softmax(scores, dim=-1)[row, position, at]
    return -(there / shared).sum() / (1 / shared).sum()

"""Where the language model is to look while it answers, and how far from there it looks.

Left alone it answers for thousands of steps with the attributes of any thing of the clip before it finds the one that
a question names. So one head is told at every word of an answer which things' queries to attend to, and another, at
the words of a time, which words of the prompt to copy.
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
from training.world import COLOUR_NAMES

LOOKING = {"things": (1, 0), "times": (2, 0)}
"""Layer and head that look at the queries of things, and those that look at the times of the prompt."""
CLAUSE = re.compile(r"(?:^|: |, and |, | and )(?=[Aa] |[Tt]he )")


@dataclass(frozen=True, slots=True)
class Glance:
    """Where to look from one token on: at all of `colours`' queries, or at all of the tokens `times`, evenly."""

    place: int
    """Of the token before the one that is said, in `Example.after`."""
    colours: tuple[int, ...] = ()
    """None at all: nothing is meant, and the prompt's first token is where to look."""
    times: tuple[int, ...] = ()
    """Places in `Example.after`."""


def glances(tokenizer: Tokenizer, one: Example, exchanges: Sequence[Exchange]) -> Iterator[Glance]:
    """Where to look at every word of every answer of a dialogue about a clip."""
    text, starts = _text(tokenizer, one.after)
    sampled = list(NUMBER.finditer(text, 0, starts[one.said.index(True)]))[: len(COLOUR_NAMES)]
    for exchange, (first, end) in zip(exchanges, _answers(one.said), strict=True):
        begin = starts[first] + 1  # after the space
        for place in range(first, end - 1):
            at = max(0, starts[place] + 1 - begin)
            yield Glance(place - 1, colours=_meant(exchange, at))
        for number in NUMBER.finditer(text, begin, starts[end - 1]):
            same = [time for time in sampled if time[0] == number[0]]
            for place in range(first, end - 1):
                if number.start() <= starts[place] + (text[starts[place]] == " ") < number.end():
                    wanted = tuple(
                        other
                        for time in same
                        for other in _places(starts, text, time)
                        if one.after[other] == one.after[place]
                    )
                    assert wanted, "a time that is said stands in the prompt"
                    yield Glance(place - 1, times=wanted)


def _text(tokenizer: Tokenizer, ids: Sequence[int]) -> tuple[str, list[int]]:
    """The text of tokens, and where in it each begins."""
    pieces = [tokenizer.token_bytes(token).decode("latin-1") for token in ids]
    starts = [0]
    for piece in pieces:
        starts.append(starts[-1] + len(piece))
    return "".join(pieces), starts


def _answers(said: Sequence[bool]) -> Iterator[tuple[int, int]]:
    """First place and end of every answer."""
    edges = [place for place, (one, other) in enumerate(pairwise((False, *said, False))) if one != other]
    yield from zip(edges[::2], edges[1::2], strict=True)


def _places(starts: Sequence[int], text: str, found: re.Match[str]) -> Iterator[int]:
    for place, start in enumerate(starts[:-1]):
        if found.start() <= start + (text[start : start + 1] == " ") < found.end():
            yield place


def _meant(exchange: Exchange, at: int) -> tuple[int, ...]:
    """The colours that an answer speaks of at a character: those of its clause, or else all that the question means."""
    edges = [*(found.end() for found in CLAUSE.finditer(exchange.answer)), len(exchange.answer)]
    clause = next((exchange.answer[one:other] for one, other in pairwise(edges) if one <= at < other), "")
    named = [colour for colour in exchange.about if re.search(rf"\b{colour}\b", clause)]
    return tuple(COLOUR_NAMES.index(colour) for colour in named or exchange.about)


@dataclass(slots=True)
class Looks:
    """The queries and keys of the heads that are told where to look, as a pass leaves them."""

    projected: dict[str, Tensor] = field(default_factory=dict)


@contextmanager
def looking(llama: LlamaForCausalLM) -> Iterator[Looks]:
    """What every pass leaves behind."""
    looks = Looks()
    hooks = []
    for layer, _ in LOOKING.values():
        for name in ("q_proj", "k_proj"):
            path = f"layers.{layer}.self_attn.{name}"

            def keep(_: torch.nn.Module, __: tuple[Tensor, ...], out: Tensor, path: str = path) -> None:
                looks.projected[path] = out

            hooks.append(llama.model.get_submodule(path).register_forward_hook(keep))
    try:
        yield looks
    finally:
        for hook in hooks:
            hook.remove()


def astray(llama: LlamaForCausalLM, looks: Looks, which: tuple[int, int], wanted: Tensor) -> Tensor:
    """Cross-entropy between where a head looks and where it should.

    `wanted` [n, 4] has row, position, position looked at, and how many it shares its position's look with.
    """
    layer, head = which
    size = llama.config.hidden_size // llama.config.num_attention_heads
    q, k = (
        looks.projected[f"layers.{layer}.self_attn.{name}"][:, None, :, head * size : (head + 1) * size]
        for name in ("q_proj", "k_proj")
    )
    length = q.shape[2]
    cos, sin = llama.model.rotary_emb(q, torch.arange(length)[None])
    q, k = (turned[:, 0] for turned in apply_rotary_pos_emb(q, k, cos, sin))
    later = torch.ones(length, length, dtype=torch.bool).triu(1)
    scores = (q @ k.transpose(1, 2) / size**0.5).masked_fill(later, float("-inf"))
    row, place, at, shared = wanted.unbind(1)
    there = functional.log_softmax(scores, dim=-1)[row, place, at]
    return -(there / shared).sum() / (1 / shared).sum()

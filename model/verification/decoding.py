"""Simple greedy decoding and beam search, as used for the references; not for serving."""

from collections.abc import Collection, Sequence

import torch
from torch import Tensor
from transformers import LlamaForCausalLM

from model.engine.sampler import distribution
from model.engine.sampling_params import SamplingParams


@torch.inference_mode()
def decode_greedily(
    network: LlamaForCausalLM,
    prompt: Tensor,
    *,
    max_tokens: int,
    eos: int,
    stop: Collection[Sequence[int]] = (),
) -> tuple[list[int], Tensor]:
    """Choose the likeliest token at each step, for one sequence, without the engine.

    Args:
        network: a language model for inference.
        prompt: embeddings [1, L, hidden].
        max_tokens: the most tokens to decode, at least one.
        eos: the token that ends an answer; it is part of the result.
        stop: sequences that end an answer; they are part of the result.

    Returns:
        Token ids, and the float32 logits [num_tokens, vocab] that they were chosen from.
    """
    ids: list[int] = []
    logits: list[Tensor] = []
    out = network(inputs_embeds=prompt, use_cache=True, logits_to_keep=1)
    while True:
        logits.append(out.logits[0, -1].float())
        ids.append(int(logits[-1].argmax()))
        if len(ids) >= max_tokens or ids[-1] == eos or any(ids[-len(tail) :] == list(tail) for tail in stop):
            return ids, torch.stack(logits)
        token = torch.tensor([[ids[-1]]], device=prompt.device)
        out = network(input_ids=token, past_key_values=out.past_key_values, use_cache=True)


@torch.inference_mode()
def search_beams(network: LlamaForCausalLM, prompt: Tensor, *, num_beams: int, max_tokens: int, eos: int) -> list[int]:
    """Return the best of `num_beams` hypotheses for a prompt [1, L, hidden], by transformers' beam search."""
    out: Tensor = network.generate(
        inputs_embeds=prompt,
        attention_mask=torch.ones(prompt.shape[:2], dtype=torch.long, device=prompt.device),
        num_beams=num_beams,
        do_sample=False,
        max_new_tokens=max_tokens,
        eos_token_id=eos,
        pad_token_id=eos,
    )
    ids: list[int] = out[0].tolist()
    return ids


def sampling_probabilities(logits: Tensor, params: SamplingParams) -> Tensor:
    """Return the distribution of the engine's sampler, float32 [rows, vocab], for logits [rows, vocab]."""
    return distribution(logits, [params] * len(logits)).float()

"""MobiLlama (mbzuai-oryx), a small language model without videos: key map, sizes, and loading.

Prompts and numbers are those of the published model cards, except that text of a user cannot imitate a turn.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch

from model.checkpoints.folder import Checkpoint, read_model, read_sampling, tokenizer_of
from model.checkpoints.published import read_whole, to_convert
from model.engine.sampling_params import SamplingParams
from model.families.mobillama.network import MobiLlamaConfig, MobiLlamaNetwork, Prompt
from model.families.mobillama.published import (
    BUFFERS,
    PUBLISHED_05B,
    PUBLISHED_08B,
    PUBLISHED_1B,
    read_published,
    read_sizes,
    with_every_name,
)
from model.families.mobillama.template import OneShotTemplate, PlainTemplate
from model.families.mobillama.verification import TokenIdsOnly, verify_stages
from model.family import Family, blank, build_family, seeded_model
from model.memory_estimate import ValueCounts, count_values
from model.networks.llama import DecoderConfig
from model.quantization import Quantization
from model.role import Role
from model.text.conversation import Template
from model.text.sentencepiece import read_sentencepiece
from model.text.tokenizer import Tokenizer, plain_tokenizer
from model.weights import KeyMap

__all__ = ["SIZES", "load", "read_source", "value_counts", "verify_stages"]

NAME = "mobillama"
KEY_MAP = KeyMap(renames=((r"^(model|lm_head)\.", r"language_model.\1."),), ignored=(BUFFERS,))
"""Maps the published names to ours; our own names are unchanged."""

PUBLISHED_SAMPLING = SamplingParams(temperature=0.0, top_k=50, max_tokens=512)
"""The chat card's: greedy. `top_k`, the default of transformers, applies when a client sets a temperature.

The card bounds prompt and answer together by 1,000 tokens; the published prompt has about 600."""
PROMPTS: Mapping[Prompt, tuple[Template, SamplingParams]] = {
    "one-shot": (OneShotTemplate(), PUBLISHED_SAMPLING),
    "plain": (PlainTemplate(), replace(PUBLISHED_SAMPLING, repetition_penalty=1.2)),
}
"""The template and the card's sampling of chat and base checkpoints."""

SIZES = {"05b": PUBLISHED_05B, "08b": PUBLISHED_08B, "1b": PUBLISHED_1B}
TINY = MobiLlamaConfig(
    decoder=DecoderConfig(
        vocab_size=354, width=64, depth=4, num_heads=4, mlp_width=192, max_positions=4096, rms_eps=1e-5
    ),
    shared_mlp=True,
)
TINY_SEED = 1
"""Seed of the small model's weights. It is untrained, and its answers are noise.

Its tokenizer has pieces of one character, with which the published prompt takes 2,200 positions."""


def load(
    *,
    checkpoint: Path | None,
    device: torch.device | str,
    dtype: torch.dtype,
    quantization: Quantization | None,
    role: Role = "all",
) -> Family:
    """Load the model in a folder; None is a small, untrained model of seeded random values.

    The folder holds `config.json` with the sizes in the layout of `MobiLlamaConfig.to_json` or as published,
    `*.safetensors` with published names or ours, LLaMA's `tokenizer.model`, and perhaps `generation_config.json`.

    Raises:
        WeightsError, TokenizerError: the folder is incomplete, damaged or another model's, or the library that
            quantises is not installed.
    """
    if checkpoint is None:
        saved = seeded_model(MobiLlamaNetwork, TINY, seed=TINY_SEED, sampling=PUBLISHED_SAMPLING)
        tokenizer = plain_tokenizer()
    else:
        saved = read_model(checkpoint, read_sizes=read_sizes, published_sampling=PUBLISHED_SAMPLING)
        _, sampling = PROMPTS[saved.config.prompt]
        saved = replace(saved, sampling=read_sampling(checkpoint, published=sampling))
        tokenizer = _tokenizer(checkpoint, saved.config)
    template, _ = PROMPTS[saved.config.prompt]
    family = build_family(
        saved,
        MobiLlamaNetwork,
        tokenizer,
        name=NAME,
        key_map=KEY_MAP,
        dtype=dtype,
        role=role,
        inputs=None,
        template=template,
    )
    del saved  # so that the pages of a weight are released when it is quantised
    return family.move_to(device, quantization=quantization, role=role)


def read_source(
    folder: Path | None, *, parts: Mapping[str, Path], ignored: tuple[str, ...], dtype: torch.dtype | None
) -> tuple[Checkpoint, str]:
    """Read a published folder; return what `reeltalk convert` writes, and the identity of the sources.

    A shared MLP is written under the name of every layer, whichever of them the source has.

    Args:
        folder: the published repository, or a whole model in `weights.safetensors`.
        parts: the repository elsewhere: `llama`.
        ignored: keys that the user knows to be harmless.
        dtype: what to cast to; None keeps each tensor's dtype.

    Raises:
        WeightsError, TokenizerError: the folder is incomplete, damaged or another model's.
    """
    source = read_whole(folder, parts, read_sizes) or read_published(folder, parts, ignored=ignored)
    if source.config.shared_mlp:
        source = replace(source, tensors=with_every_name(source.tensors, source.config.decoder.depth))
    if not source.note:
        source = replace(source, note=f"The prompt is {source.config.prompt}.")
    return to_convert(NAME, blank(MobiLlamaNetwork, source.config), source, key_map=KEY_MAP, dtype=dtype)


def value_counts(size: str) -> ValueCounts:
    """Count the values of a published size, one of `SIZES`, without allocating memory."""
    return count_values(blank(MobiLlamaNetwork, SIZES[size]), modules={})


def _tokenizer(checkpoint: Path, config: MobiLlamaConfig) -> Tokenizer:
    """Read LLaMA's tokenizer; reference tensors whose inputs are token ids can lack it."""
    path = tokenizer_of(checkpoint)
    if not path.is_file() and (checkpoint / "inputs.safetensors").is_file():
        return TokenIdsOnly(config.decoder.vocab_size)
    return read_sentencepiece(path)

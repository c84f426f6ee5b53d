"""A VTimeLLM whose weights make it answer every question with one text, for tests of what follows an answer."""

import json
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import torch
from safetensors.torch import save_file

from model.families.vtimellm.family import TINY
from model.families.vtimellm.network import VTimeLLMNetwork
from model.networks.llama import DecoderConfig
from model.text.sentencepiece import read_sentencepiece
from model.text.tokenizer import SPACE, Piece
from model.weights import seeded
from tests.model.text.sentencepiece_files import llama_like, model_file

SEED = 7
_LAST_OF_PROMPT = ":"  # "ASSISTANT:"
_WIDTH = 256


def pointing_checkpoint(folder: Path, words: Sequence[str]) -> Path:
    """Write the checkpoint folder of a model that answers with `words`, a token each.

    Attention and MLPs add nothing, so that each token alone determines the next one. No word may occur twice.
    """
    assert len(set(words)) == len(words)
    folder.mkdir()
    pieces = [*llama_like(), *(Piece(text=SPACE + word, score=-1e6) for word in words)]
    (folder / "tokenizer.model").write_bytes(model_file(pieces))
    decoder = DecoderConfig(
        vocab_size=len(pieces), width=_WIDTH, depth=1, num_heads=4, mlp_width=16, max_positions=2048, rms_eps=1e-5
    )
    config = replace(TINY, decoder=decoder)
    (folder / "config.json").write_text(json.dumps(config.to_json()))
    with torch.device("meta"):
        network = VTimeLLMNetwork(config)
    tensors = seeded(network, seed=SEED)
    for name, tensor in tensors.items():
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            tensor.zero_()
    _chain(tensors, [_LAST_OF_PROMPT, *(SPACE + word for word in words), "</s>"], [piece.text for piece in pieces])
    save_file(tensors, folder / "model.safetensors")
    read_sentencepiece(folder / "tokenizer.model")
    return folder


def _chain(tensors: dict[str, torch.Tensor], texts: Sequence[str], vocabulary: Sequence[str]) -> None:
    """Make each of the tokens `texts` the only likely one after the token before it."""
    embeddings = torch.randn(len(vocabulary), _WIDTH, generator=torch.Generator().manual_seed(SEED))
    tensors["language_model.model.embed_tokens.weight"].copy_(embeddings)
    tensors["language_model.model.norm.weight"].fill_(1.0)
    head = tensors["language_model.lm_head.weight"].zero_()
    for text, following in pairwise(texts):
        head[vocabulary.index(following)] += embeddings[vocabulary.index(text)]

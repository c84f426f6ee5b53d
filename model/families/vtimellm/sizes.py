"""VTimeLLM's published sizes, and the sizes in a `config.json`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from model.checkpoints.folder import read_config
from model.checkpoints.huggingface import ROPE_THETA, llama_sizes, rope_theta
from model.families.vtimellm.network import VTimeLLMConfig
from model.networks.clip import CLIP_LARGE, OPENAI_ACTIVATION, clip_sizes
from model.networks.llama import DecoderConfig

PUBLISHED_7B = VTimeLLMConfig(
    vision=CLIP_LARGE,
    projected_width=768,
    decoder=DecoderConfig(
        vocab_size=32000, width=4096, depth=32, num_heads=32, mlp_width=11008, max_positions=4096, rms_eps=1e-5
    ),
)
"""Sizes of CLIP ViT-L/14 and Vicuna 7B v1.5."""


def read_sizes(path: Path) -> VTimeLLMConfig:
    """Read the sizes in a `config.json`: in our layout, or by part (`clip` and `llm`).

    Raises:
        WeightsError: the file is absent, or a size is missing or unknown.
    """
    return read_config(path, VTimeLLMConfig, model="VTimeLLM", part="clip", by_part=_sizes_by_part)


def _sizes_by_part(values: Mapping[str, Any]) -> VTimeLLMConfig:
    clip, llm = values["clip"], values["llm"]
    if clip.get("hidden_act", OPENAI_ACTIVATION) != OPENAI_ACTIVATION:
        raise ValueError(f"its CLIP has the activation {clip['hidden_act']}")
    if rope_theta(llm) != ROPE_THETA:
        raise ValueError(f"its LLaMA has a rope_theta of {rope_theta(llm):g}")
    return VTimeLLMConfig(vision=clip_sizes(clip), projected_width=clip["projection_dim"], decoder=llama_sizes(llm))

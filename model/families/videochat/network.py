"""The VideoChat network in any sizes: encoder, norm, Q-Former, projection, LLaMA.

Knows no checkpoints, prompts or devices. The Q-Former and LLaMA are those of transformers. Parameters have their
published names, except those of the Q-Former.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import LlamaForCausalLM

from model.families.videochat.vision import VisionConfig, VisionEncoder
from model.features import VIDEO, PartSpec
from model.networks import qformer
from model.networks.llama import build_llama
from model.networks.network import NetworkConfig, VideoNetwork


@dataclass(frozen=True, kw_only=True, slots=True)
class QFormerConfig(qformer.QFormerConfig):
    """Sizes of the Q-Former, whose queries are BLIP-2's and VideoChat's own ones."""

    num_extra_queries: int = 64


@dataclass(frozen=True, kw_only=True, slots=True)
class VideoChatConfig(NetworkConfig):
    """Every size of a VideoChat network. It was trained on `num_frames` frames, and can run on any number from 1."""

    num_frames: int
    vision: VisionConfig
    qformer: QFormerConfig

    @property
    def parts(self) -> tuple[PartSpec, ...]:
        """The query tokens of one clip, [queries, Q-Former width]."""
        num_queries = self.qformer.num_queries + self.qformer.num_extra_queries
        return (PartSpec(name=VIDEO, shape=(num_queries, self.qformer.width)),)


class VideoChatNetwork(VideoNetwork):
    """All modules of one VideoChat model, with initial values; can be trained, without dropout."""

    config: VideoChatConfig
    encoding = frozenset({"visual_encoder", "ln_vision", "query_tokens", "extra_query_tokens", "qformer"})

    def __init__(self, config: VideoChatConfig) -> None:
        super().__init__()
        width = config.qformer.width
        self.config = config
        self.visual_encoder = VisionEncoder(config.vision)
        self.ln_vision = qformer.Float32Norm(config.vision.width, eps=1e-5)
        self.query_tokens = nn.Parameter(torch.empty(1, config.qformer.num_queries, width))
        self.extra_query_tokens = nn.Parameter(torch.empty(1, config.qformer.num_extra_queries, width))
        self.qformer = qformer.build_qformer(config.qformer, encoder_width=config.vision.width)
        self.llama_proj = nn.Linear(width, config.decoder.width)
        self.llama_model = build_llama(config.decoder)
        nn.init.normal_(self.query_tokens, std=0.02)
        nn.init.normal_(self.extra_query_tokens, std=0.02)

    @property
    def decoder(self) -> LlamaForCausalLM:
        """The language model."""
        return self.llama_model

    def encode(self, pixel_values: Tensor) -> dict[str, Tensor]:
        """Encode normalised frames [B, T, 3, H, W] into unprojected features [B, queries, Q-Former width]."""
        return {VIDEO: self.query(self.see(pixel_values))}

    def see(self, pixel_values: Tensor) -> Tensor:
        """Encode frames [B, T, 3, H, W] into normed tokens [B, T * (patches + 1) + 1, C], the global token last."""
        tokens: Tensor = self.ln_vision(self.visual_encoder(pixel_values))
        return tokens

    def query(self, tokens: Tensor) -> Tensor:
        """Query tokens [B, L, C], whose order does not matter, for features [B, queries, Q-Former width]."""
        queries = torch.cat((self.query_tokens, self.extra_query_tokens), dim=1).expand(len(tokens), -1, -1)
        features: Tensor = self.qformer(query_embeds=queries, encoder_hidden_states=tokens).last_hidden_state
        return features

    def project(self, part: str, features: Tensor) -> Tensor:  # noqa: ARG002  there is one part
        """Project features [..., Q-Former width] to video tokens [..., hidden]."""
        out: Tensor = self.llama_proj(features)
        return out

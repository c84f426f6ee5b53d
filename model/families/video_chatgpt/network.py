"""The Video-ChatGPT network in any sizes: CLIP's vision tower, pooling over time and space, projection, LLaMA.

Knows no checkpoints, prompts or devices. CLIP and LLaMA are those of transformers.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import LlamaForCausalLM

from model.features import VIDEO, PartSpec
from model.networks.clip import OPENAI_ACTIVATION, ClipEncoder, ClipVisionConfig
from model.networks.llama import build_llama
from model.networks.network import NetworkConfig, VideoNetwork

NUM_TEMPORAL_TOKENS = 100
"""One per frame; a clip of fewer frames is padded with zeros (`get_spatio_temporal_features_torch`)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class VideoChatGPTConfig(NetworkConfig):
    """Every size of a Video-ChatGPT network, and the special tokens that are not in the tokenizer's file."""

    vision: ClipVisionConfig
    added_tokens: tuple[str, ...]
    """In the order of their ids, which follow those of the file."""

    @property
    def parts(self) -> tuple[PartSpec, ...]:
        """The temporal and spatial tokens of one clip, [100 + S, C]."""
        return (PartSpec(name=VIDEO, shape=(NUM_TEMPORAL_TOKENS + self.vision.num_patches, self.vision.width)),)


class VideoChatGPTNetwork(VideoNetwork):
    """All modules of one Video-ChatGPT model, with initial values."""

    config: VideoChatGPTConfig
    encoding = frozenset({"vision_tower"})

    def __init__(self, config: VideoChatGPTConfig) -> None:
        super().__init__()
        self.config = config
        self.vision_tower = ClipEncoder(config.vision, activation=OPENAI_ACTIVATION)
        self.mm_projector = nn.Linear(config.vision.width, config.decoder.width)
        self.language_model = build_llama(config.decoder)

    @property
    def decoder(self) -> LlamaForCausalLM:
        """The language model."""
        return self.language_model

    def encode(self, pixel_values: Tensor) -> dict[str, Tensor]:
        """Encode normalised frames [B, T, 3, H, W], with T from 1 to 100, into unprojected [B, 100 + S, C]."""
        return {VIDEO: self.pool(self.see(pixel_values))}

    def see(self, pixel_values: Tensor) -> Tensor:
        """Encode frames [B, T, 3, H, W] into patches [B, T, S, C]."""
        patches: Tensor = self.vision_tower(pixel_values.flatten(0, 1))[:, 1:]
        return patches.reshape(*pixel_values.shape[:2], *patches.shape[1:])

    def pool(self, patches: Tensor) -> Tensor:
        """Pool patches [B, T, S, C] into features [B, 100 + S, C]: means over each frame, then over time."""
        num_missing = NUM_TEMPORAL_TOKENS - patches.shape[1]
        assert num_missing >= 0, "there are more frames than temporal tokens"
        temporal = functional.pad(patches.mean(2), (0, 0, 0, num_missing))  # [B, 100, C]
        return torch.cat((temporal, patches.mean(1)), dim=1)

    def project(self, part: str, features: Tensor) -> Tensor:  # noqa: ARG002  there is one part
        """Project features [..., C] to video tokens [..., hidden]."""
        out: Tensor = self.mm_projector(features)
        return out

    def restore_buffers(self) -> None:
        """Compute LLaMA's buffers, and the ids of CLIP's positions."""
        super().restore_buffers()
        self.vision_tower.restore_buffers()

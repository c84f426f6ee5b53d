"""The VTimeLLM network in any sizes: CLIP's image embeddings, a projection, LLaMA.

Knows no checkpoints, prompts or devices. CLIP and LLaMA are those of transformers.
"""

from dataclasses import dataclass

from torch import Tensor, nn
from transformers import LlamaForCausalLM

from model.features import VIDEO, PartSpec
from model.networks.clip import OPENAI_ACTIVATION, ClipImageEmbedder, ClipVisionConfig
from model.networks.llama import build_llama
from model.networks.network import NetworkConfig, VideoNetwork

NUM_FRAMES = 100
"""Frames of a clip, which are also its video tokens: token `i` is the model's name for the i-th hundredth of a clip."""


@dataclass(frozen=True, kw_only=True, slots=True)
class VTimeLLMConfig(NetworkConfig):
    """Every size of a VTimeLLM network."""

    vision: ClipVisionConfig
    projected_width: int
    """The width of CLIP's image embeddings."""

    @property
    def parts(self) -> tuple[PartSpec, ...]:
        """The image embeddings of one clip's frames, [100, projected]."""
        return (PartSpec(name=VIDEO, shape=(NUM_FRAMES, self.projected_width)),)


class VTimeLLMNetwork(VideoNetwork):
    """All modules of one VTimeLLM model, with initial values."""

    config: VTimeLLMConfig
    encoding = frozenset({"vision_tower"})

    def __init__(self, config: VTimeLLMConfig) -> None:
        super().__init__()
        self.config = config
        self.vision_tower = ClipImageEmbedder(
            config.vision, activation=OPENAI_ACTIVATION, projected_width=config.projected_width
        )
        self.mm_projector = nn.Linear(config.projected_width, config.decoder.width)
        self.language_model = build_llama(config.decoder)

    @property
    def decoder(self) -> LlamaForCausalLM:
        """The language model."""
        return self.language_model

    def encode(self, pixel_values: Tensor) -> dict[str, Tensor]:
        """Encode normalised frames [B, T, 3, H, W] into image embeddings [B, T, projected], which are not normalised.

        The service gives 100 frames; references may have fewer.
        """
        embeds: Tensor = self.vision_tower(pixel_values.flatten(0, 1))
        return {VIDEO: embeds.reshape(*pixel_values.shape[:2], -1)}

    def project(self, part: str, features: Tensor) -> Tensor:  # noqa: ARG002  there is one part
        """Project image embeddings [..., projected] to video tokens [..., hidden]."""
        out: Tensor = self.mm_projector(features)
        return out

    def restore_buffers(self) -> None:
        """Compute LLaMA's buffers, and the ids of CLIP's positions."""
        super().restore_buffers()
        self.vision_tower.restore_buffers()

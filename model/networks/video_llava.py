"""The network of Video-LLaVA: CLIP over a fixed number of frames, a projection of two layers, LLaMA.

The original and its conversion for transformers (`-hf`) share everything but the encoder of frames, and are two
families. Knows no checkpoints, prompts or devices.
"""

from dataclasses import dataclass

from torch import Tensor, nn
from transformers import LlamaForCausalLM

from model.features import VIDEO, PartSpec
from model.networks.clip import ClipEncoder, ClipVisionConfig
from model.networks.llama import build_llama
from model.networks.network import NetworkConfig, VideoNetwork

ACTIVATIONS = ("gelu", "quick_gelu")
"""Of LanguageBind's encoder, and of OpenAI's."""


@dataclass(frozen=True, kw_only=True, slots=True)
class VideoLlavaConfig(NetworkConfig):
    """Every size of a Video-LLaVA network."""

    vision: ClipVisionConfig
    activation: str
    """Of the encoder's MLPs: `gelu` in the original, `quick_gelu` in `-hf`. The tensors do not show it."""
    num_frames: int

    def __post_init__(self) -> None:
        NetworkConfig.__post_init__(self)
        if self.activation not in ACTIVATIONS:
            raise ValueError(
                f"the encoder's activation must be one of {', '.join(ACTIVATIONS)}, not {self.activation!r}"
            )

    @property
    def num_frame_tokens(self) -> int:
        """Tokens of one frame: its class token, then its patches."""
        return 1 + self.vision.num_patches

    @property
    def parts(self) -> tuple[PartSpec, ...]:
        """The tokens of one clip, frame by frame, [T * (1 + S), C]."""
        return (PartSpec(name=VIDEO, shape=(self.num_frames * self.num_frame_tokens, self.vision.width)),)


class VideoLlavaNetwork(VideoNetwork):
    """All modules of one Video-LLaVA model, around an encoder of frames."""

    config: VideoLlavaConfig
    encoding = frozenset({"video_tower"})

    def __init__(self, config: VideoLlavaConfig, video_tower: ClipEncoder) -> None:
        super().__init__()
        self.config = config
        self.video_tower = video_tower
        self.mm_projector = nn.Sequential(
            nn.Linear(config.vision.width, config.decoder.width),
            nn.GELU(),
            nn.Linear(config.decoder.width, config.decoder.width),
        )
        self.language_model = build_llama(config.decoder)

    @property
    def decoder(self) -> LlamaForCausalLM:
        """The language model."""
        return self.language_model

    def encode(self, pixel_values: Tensor) -> dict[str, Tensor]:
        """Encode normalised frames [B, T, 3, H, W], with T as configured, into unprojected [B, T * (1 + S), C]."""
        assert pixel_values.shape[1] == self.config.num_frames, "the network takes a fixed number of frames"
        tokens: Tensor = self.video_tower(pixel_values.flatten(0, 1))  # [B * T, 1 + S, C]
        return {VIDEO: tokens.reshape(len(pixel_values), -1, tokens.shape[-1])}

    def project(self, part: str, features: Tensor) -> Tensor:  # noqa: ARG002  there is one part
        """Project features [..., C] to video tokens [..., hidden]."""
        out: Tensor = self.mm_projector(features)
        return out

    def restore_buffers(self) -> None:
        """Compute LLaMA's buffers, and the ids of CLIP's positions."""
        super().restore_buffers()
        self.video_tower.restore_buffers()

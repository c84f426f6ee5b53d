"""Video-LLaVA's encoder: LanguageBind's CLIP, in which every layer also attends over time.

Before each layer of CLIP, the tokens at one place of all frames attend to one another. The layers are those of
transformers.
"""

import torch
from torch import Tensor, nn
from transformers import CLIPVisionConfig
from transformers.models.clip.modeling_clip import CLIPAttention, CLIPEncoderLayer

from model.networks.clip import LAYER_NORM_EPS, ClipEncoder, to_transformers
from model.networks.video_llava import VideoLlavaConfig, VideoLlavaNetwork

ACTIVATION = "gelu"
"""The activation of LanguageBind, which is built on a CLIP of LAION."""


class TemporalLayer(CLIPEncoderLayer):  # type: ignore[misc]
    """A layer of CLIP with attention over time before it. Adds the embedding of each frame first."""

    def __init__(self, clip: CLIPVisionConfig, num_frames: int) -> None:
        super().__init__(clip)
        self.num_frames = num_frames
        self.temporal_embedding = nn.Parameter(torch.zeros(1, num_frames, clip.hidden_size))
        self.temporal_attn = CLIPAttention(clip)
        self.temporal_layer_norm1 = nn.LayerNorm(clip.hidden_size, eps=LAYER_NORM_EPS)

    def forward(self, hidden_states: Tensor, attention_mask: Tensor | None, **options: object) -> Tensor:
        """Map tokens [B * T, 1 + S, C] to tokens of the same shape; `attention_mask` is None."""
        _, num_tokens, width = hidden_states.shape
        by_place = hidden_states.reshape(-1, self.num_frames, num_tokens, width).transpose(1, 2)  # [B, 1 + S, T, C]
        series = (by_place + self.temporal_embedding).flatten(0, 1)  # [B * (1 + S), T, C]
        attended, _ = self.temporal_attn(self.temporal_layer_norm1(series))
        by_frame = (series + attended).reshape(by_place.shape).transpose(1, 2)  # [B, T, 1 + S, C]
        encoded: Tensor = super().forward(by_frame.flatten(0, 1), attention_mask, **options)
        return encoded


class TemporalClipEncoder(ClipEncoder):
    """A vision transformer without its last layer, whose layers attend over time."""

    def __init__(self, config: VideoLlavaConfig) -> None:
        super().__init__(config.vision, activation=config.activation)
        clip = to_transformers(config.vision, activation=config.activation, num_layers=config.vision.depth - 1)
        self.encoder.layers = nn.ModuleList(
            TemporalLayer(clip, config.num_frames) for _ in range(clip.num_hidden_layers)
        )


class VideoLlavaOriginalNetwork(VideoLlavaNetwork):
    """All modules of one original Video-LLaVA model, with initial values."""

    def __init__(self, config: VideoLlavaConfig) -> None:
        super().__init__(config, TemporalClipEncoder(config))

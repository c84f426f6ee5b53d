"""The Video-LLaMA network in any sizes: frames and sound, each through an encoder and Q-Formers, into LLaMA.

Knows no checkpoints, prompts or devices. Parameters have their published names, except those of the Q-Formers and of
ImageBind. A vision-only model lacks all modules for sound.
"""

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from transformers import LlamaForCausalLM

from model.features import AUDIO, VIDEO, PartSpec
from model.networks.eva_vit import EvaViT, EvaViTConfig
from model.networks.imagebind_audio import ImageBindAudio, ImageBindAudioConfig
from model.networks.llama import build_llama
from model.networks.network import NetworkConfig, SoundNetwork
from model.networks.qformer import Float32Norm, QFormerConfig, build_qformer

Style = Literal["vicuna", "llama-2"]


@dataclass(frozen=True, kw_only=True, slots=True)
class VideoLlamaConfig(NetworkConfig):
    """Every size of a Video-LLaMA network, and the style of its prompts.

    It was trained on `num_frames` frames, and has position embeddings for `max_frames`.
    """

    num_frames: int
    max_frames: int
    vision: EvaViTConfig
    qformer: QFormerConfig
    video_qformer: QFormerConfig
    style: Style
    audio: ImageBindAudioConfig | None = None
    audio_qformer: QFormerConfig | None = None
    num_stretches: int = 8
    """Stretches of sound, each with a position embedding."""

    def __post_init__(self) -> None:
        NetworkConfig.__post_init__(self)
        if self.style not in get_args(Style):
            raise ValueError(f"style is {self.style!r}, not one of {', '.join(get_args(Style))}")
        assert (self.audio is None) == (self.audio_qformer is None), "a model hears with both modules for sound"

    @property
    def parts(self) -> tuple[PartSpec, ...]:
        """The query tokens of the frames and, of a model that hears, of the sound: each [queries, Q-Former width]."""
        video = PartSpec(name=VIDEO, shape=(self.video_qformer.num_queries, self.video_qformer.width))
        if self.audio_qformer is None:
            return (video,)
        shape = (self.audio_qformer.num_queries, self.audio_qformer.width)
        return (video, PartSpec(name=AUDIO, shape=shape, optional=True))


class VideoLlamaNetwork(SoundNetwork):
    """All modules of one Video-LLaMA model, with initial values."""

    config: VideoLlamaConfig
    encoding = frozenset(
        {
            *("visual_encoder", "ln_vision", "query_tokens", "qformer"),
            *("video_frame_position_embedding", "video_query_tokens", "video_qformer"),
            *("audio_encoder", "audio_position_embedding", "audio_query_tokens", "audio_qformer"),
        }
    )

    def __init__(self, config: VideoLlamaConfig) -> None:
        super().__init__()
        self.config = config
        width = config.qformer.width
        self.visual_encoder = EvaViT(config.vision)
        self.ln_vision = Float32Norm(config.vision.width, eps=1e-5)
        self.query_tokens = _queries(config.qformer)
        self.qformer = build_qformer(config.qformer, encoder_width=config.vision.width)
        self.video_frame_position_embedding = nn.Embedding(config.max_frames, width)
        self.video_query_tokens = _queries(config.video_qformer)
        self.video_qformer = build_qformer(config.video_qformer, encoder_width=width)
        self.llama_proj = nn.Linear(config.video_qformer.width, config.decoder.width)
        if config.audio is not None and config.audio_qformer is not None:
            self.audio_encoder = ImageBindAudio(config.audio)
            self.audio_position_embedding = nn.Embedding(config.num_stretches, config.audio.out_width)
            self.audio_query_tokens = _queries(config.audio_qformer)
            self.audio_qformer = build_qformer(config.audio_qformer, encoder_width=config.audio.out_width)
            self.audio_llama_proj = nn.Linear(config.audio_qformer.width, config.decoder.width)
        self.llama_model = build_llama(config.decoder)

    @property
    def decoder(self) -> LlamaForCausalLM:
        """The language model."""
        return self.llama_model

    def encode(self, pixel_values: Tensor, mel: Tensor | None = None) -> dict[str, Tensor]:
        """Encode normalised frames [B, T, 3, H, W], and spectrograms [B, count, 1, bins, frames] of clips with sound.

        Returns:
            Unprojected features, `video` and perhaps `audio`, each [B, queries, Q-Former width].
        """
        features = {VIDEO: self.see(pixel_values)}
        return features if mel is None else features | {AUDIO: self.hear(mel)}

    def see(self, pixel_values: Tensor) -> Tensor:
        """Encode frames [B, T, 3, H, W], at most `max_frames` of them, to [B, queries, width]."""
        num_clips, num_frames = pixel_values.shape[:2]
        *_, tokens = self.visual_encoder.tokens_by_block(pixel_values.flatten(0, 1))  # [B * T, 1 + patches, C]
        tokens = self.ln_vision(tokens)
        queries = self.query_tokens.expand(len(tokens), -1, -1)
        frames = self.qformer(query_embeds=queries, encoder_hidden_states=tokens).last_hidden_state
        frames = frames.unflatten(0, (num_clips, num_frames))  # [B, T, queries, width]
        positions = self.video_frame_position_embedding.weight[:num_frames, None]  # [T, 1, width]
        queries = self.video_query_tokens.expand(num_clips, -1, -1)
        out: Tensor = self.video_qformer(
            query_embeds=queries, encoder_hidden_states=(frames + positions).flatten(1, 2)
        ).last_hidden_state
        return out

    def hear(self, mel: Tensor) -> Tensor:
        """Encode spectrograms [B, count, 1, bins, frames] to [B, queries, width]."""
        vectors = self.audio_encoder(mel.flatten(0, 1)).unflatten(0, mel.shape[:2])  # [B, count, out_width]
        positions = self.audio_position_embedding.weight[: mel.shape[1]]
        queries = self.audio_query_tokens.expand(len(mel), -1, -1)
        out: Tensor = self.audio_qformer(
            query_embeds=queries, encoder_hidden_states=vectors + positions
        ).last_hidden_state
        return out

    def project(self, part: str, features: Tensor) -> Tensor:
        """Project features of a part [..., width] to rows of the prompt [..., hidden]."""
        out: Tensor = (self.audio_llama_proj if part == AUDIO else self.llama_proj)(features)
        return out


def _queries(sizes: QFormerConfig) -> nn.Parameter:
    queries = nn.Parameter(torch.empty(1, sizes.num_queries, sizes.width))
    nn.init.normal_(queries, std=0.02)
    return queries

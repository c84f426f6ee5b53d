"""The contract between a model family and everything that runs one."""

from typing import Protocol

import torch
from transformers import LlamaForCausalLM

from model.conversation import Conversation, Template, VideoSlot
from model.engine.sampling_params import SamplingParams
from model.pixels import PixelSpec
from model.tokenizer import Tokenizer
from model.video import FrameSpec


class Family(Protocol):
    """One loaded video-chat model: its encoder, projection and language model, with what it wants to be fed."""

    name: str
    """The family, as the registry knows it, e.g. `videochat`."""
    checkpoint_digest: str
    """SHA-256 of every weight and size, hex; part of the fingerprint of cached features."""
    dtype: torch.dtype
    """What the encoder computes in."""
    frame_spec: FrameSpec
    pixel_spec: PixelSpec
    template: Template
    default_sampling: SamplingParams
    tokenizer: Tokenizer
    language_model: LlamaForCausalLM
    feature_shape: tuple[int, int]
    """[query tokens, Q-Former width] of one clip's features."""
    num_video_tokens: int
    """Positions one clip takes in a prompt."""
    max_model_len: int

    def encode(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Frames [B, T, 3, H, W], normalised, to features [B, *feature_shape], before the projection.

        Sees no prompt, so that its result can be cached under the video alone.
        """

    def project(self, features: torch.Tensor) -> torch.Tensor:
        """Features [*feature_shape] to video tokens [num_video_tokens, hidden]."""

    def tokenize(self, conversation: Conversation) -> tuple[tuple[int, ...] | VideoSlot, ...]:
        """The rendered prompt in token ids, segment by segment; video slots stay in their places."""

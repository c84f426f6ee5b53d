"""The contract between a model family and what runs one, and how a conversation becomes its prompt."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from transformers import LlamaForCausalLM

from model.conversation import Conversation, Part, SpecialToken, Template, VideoSlot
from model.engine.sampling_params import SamplingParams
from model.engine.sequence import TextSegment, VideoSegment
from model.pixels import PixelSpec
from model.tokenizer import Tokenizer
from model.video import FrameSpec


class Family(Protocol):
    """One loaded video-chat model: its encoder, projection, language model, and what it wants to be fed."""

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
    """[tokens, width] of one clip's features, however many frames it has."""
    num_video_tokens: int
    """Positions one clip takes in a prompt."""
    max_model_len: int
    num_parameters: int
    """Of the encoder, the projection and the language model together."""

    def encode(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Frames [B, T, 3, H, W], normalised, to features [B, *feature_shape], before the projection.

        Sees no prompt, so that its result can be cached under the video alone.
        """

    def project(self, features: torch.Tensor) -> torch.Tensor:
        """Features [*feature_shape] to video tokens [num_video_tokens, hidden]."""

    def tokenize(self, conversation: Conversation) -> tuple[tuple[int, ...] | VideoSlot, ...]:
        """The rendered prompt in token ids, segment by segment; video slots stay in their places."""


@dataclass(frozen=True, slots=True, eq=False)
class EncodedClip:
    """One clip as the encoder left it: features [*feature_shape], in any dtype, on any device.

    `identity` names their content (fingerprint and content hash), for the prefix cache.
    """

    features: torch.Tensor
    identity: str


def tokenize_segments(tokenizer: Tokenizer, segments: Sequence[Part]) -> tuple[tuple[int, ...] | VideoSlot, ...]:
    """Each text by itself, with its own dummy prefix; begin-of-sequence before the first one alone.

    Raises:
        TokenizerError: the vocabulary lacks a special token.
    """
    return tuple(_tokenized(tokenizer, segment, bos=place == 0) for place, segment in enumerate(segments))


def _tokenized(tokenizer: Tokenizer, segment: Part, *, bos: bool) -> tuple[int, ...] | VideoSlot:
    match segment:
        case VideoSlot():
            return segment
        case SpecialToken(name):
            return (tokenizer.special_id(name),)
        case text:
            return tuple(tokenizer.encode(text, bos=bos))


def build_prompt(
    family: Family, conversation: Conversation, clips: Sequence[EncodedClip]
) -> tuple[TextSegment | VideoSegment, ...]:
    """The prompt as the engine takes it; `clips[i]` are the features of `conversation.clips[i]`."""
    assert len(clips) == len(conversation.clips), "every clip is encoded"
    return tuple(
        VideoSegment(family.project(clips[part.clip].features), clips[part.clip].identity)
        if isinstance(part, VideoSlot)
        else TextSegment(part)
        for part in family.tokenize(conversation)
    )


def count_prompt_tokens(family: Family, conversation: Conversation) -> int:
    """Positions the prompt takes, video tokens included; needs no features."""
    return sum(
        family.num_video_tokens if isinstance(part, VideoSlot) else len(part) for part in family.tokenize(conversation)
    )

"""A loaded model of a family, whichever it is, and how a conversation becomes its prompt."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor
from transformers import LlamaForCausalLM

from model.engine.sampling_params import SamplingParams
from model.engine.sequence import TextSegment, VideoSegment
from model.networks.video_network import ConfigT, NetworkT, VideoNetwork
from model.plan import num_parameters
from model.quantization import Quantization, quantize
from model.role import Role
from model.text.conversation import Conversation, Part, SpecialToken, Template, VideoSlot
from model.text.tokenizer import Tokenizer
from model.video.pixels import PixelSpec
from model.video.spec import FrameSpec
from model.weights import KeyMap, WeightsError, load_strict


class Family:
    """One loaded video-chat model on one device, and what it wants to be fed.

    Raises:
        WeightsError: the tokenizer and the language model do not belong together.
    """

    def __init__(
        self,
        network: VideoNetwork,
        tokenizer: Tokenizer,
        *,
        name: str,
        checkpoint_digest: str,
        frame_spec: FrameSpec,
        pixel_spec: PixelSpec,
        template: Template,
        default_sampling: SamplingParams,
    ) -> None:
        """Describe a network that is ready for inference.

        Args:
            network: see `assemble`; of one role, it is good for that alone.
            tokenizer: the language model's.
            name: the family, as the registry knows it, e.g. `videochat`.
            checkpoint_digest: SHA-256 of every weight and size, hex; part of the fingerprint of cached features.
            frame_spec: which frames of a clip it sees.
            pixel_spec: how they become pixels.
            template: how it writes conversations down.
            default_sampling: as its published demo has it.
        """
        sizes = network.config
        if tokenizer.vocab_size > sizes.decoder.vocab_size:
            raise WeightsError("The tokenizer has more pieces than the language model has rows.")
        self.network, self.tokenizer = network, tokenizer
        self.name, self.checkpoint_digest = name, checkpoint_digest
        self.frame_spec, self.pixel_spec = frame_spec, pixel_spec
        self.template, self.default_sampling = template, default_sampling
        self.language_model: LlamaForCausalLM = network.decoder
        self.dtype = next(network.parameters()).dtype
        """What the encoder computes in."""
        self.feature_shape = sizes.feature_shape
        """[tokens, width] of one clip's features, however many frames it has."""
        self.num_video_tokens = sizes.feature_shape[0]
        """Positions one clip takes in a prompt."""
        self.max_model_len = sizes.decoder.max_positions
        self.num_parameters = num_parameters(network)
        """Of the encoder, the projection and the language model together, whatever was loaded of them."""
        self.device = torch.device("cpu")
        """Where it is."""

    def place(self, device: torch.device | str, *, quantization: Quantization | None, role: Role = "all") -> Self:
        """Move what a role needs to a device, the language model's weights in fewer bits if so wanted.

        Raises:
            WeightsError: the library that quantises is not installed.
        """
        if quantization is not None and role != "encode":
            quantize(self.language_model, quantization, device=device)
        self.network.place(device, role=role)
        self.device = torch.device(device)
        return self

    def encode(self, pixel_values: Tensor) -> Tensor:
        """Frames [B, T, 3, H, W], normalised, to features [B, *feature_shape], before the projection; T up to 100.

        Sees no prompt, so that its result can be cached under the video alone.
        """
        with torch.no_grad():
            return self.network.encode(pixel_values.to(self.device, self.dtype))

    def project(self, features: Tensor) -> Tensor:
        """Features [*feature_shape] to video tokens [num_video_tokens, hidden]."""
        with torch.no_grad():
            return self.network.project(features.to(self.device, self.dtype))

    def tokenize(self, conversation: Conversation) -> tuple[tuple[int, ...] | VideoSlot, ...]:
        """The rendered prompt in token ids, segment by segment; video slots stay in their places."""
        return tokenize_segments(self.tokenizer, self.template.render(conversation))


def blank(build: Callable[[ConfigT], NetworkT], config: ConfigT) -> NetworkT:
    """A network on the meta device: no memory, and no initial values that a checkpoint would replace at once."""
    with torch.device("meta"):
        return build(config)


def assemble(
    network: NetworkT, tensors: Mapping[str, Tensor], *, key_map: KeyMap, dtype: torch.dtype, role: Role = "all"
) -> NetworkT:
    """Fill a blank network for inference, on the CPU; tensors that are in `dtype` already stay as they are.

    What the role does not need stays on the meta device. The tensors must be complete for any role: the digest that
    names features is the whole checkpoint's.

    Raises:
        WeightsError: the tensors do not cover every parameter exactly once.
    """
    network.to(dtype)  # of what stays blank, the dtype is all there is
    wanted = None if role == "all" else lambda name: network.serves(name, role)
    load_strict(network, tensors, key_map=key_map, dtype=dtype, wanted=wanted)
    network.restore_buffers()
    return network.requires_grad_(False).eval()


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

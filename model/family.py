"""A loaded model of any family, and how it turns a conversation into a prompt."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor
from transformers import LlamaForCausalLM

from model.engine.sampling_params import SamplingParams
from model.engine.sequence import TextSegment, VideoSegment
from model.memory_estimate import num_parameters
from model.networks.video_network import ConfigT, NetworkT, VideoNetwork
from model.quantization import Quantization, quantize
from model.role import Role
from model.text.conversation import Conversation, Part, SpecialToken, Template, VideoSlot
from model.text.tokenizer import Tokenizer
from model.video.pixels import PixelSpec
from model.video.spec import FrameSpec
from model.weights import KeyMap, WeightsError, load_strict


class Family:
    """One loaded video-chat model on one device, with the inputs that it expects.

    Raises:
        WeightsError: the tokenizer has more pieces than the language model has embeddings.
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
            network: from `assemble`; one that was assembled for a role can do only what that role does.
            tokenizer: of the language model.
            name: the family's name in the registry, e.g. `videochat`.
            checkpoint_digest: SHA-256 of all weights and sizes, hex; part of the fingerprint of cached features.
            frame_spec: which frames of a clip the model takes.
            pixel_spec: how frames become pixel values.
            template: how the family writes a prompt.
            default_sampling: the settings of the published demo.
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
        """The dtype that the encoder computes in."""
        self.feature_shape = sizes.feature_shape
        """[tokens, width] of one clip's features, for any number of frames."""
        self.num_video_tokens = sizes.feature_shape[0]
        """Positions of one clip in a prompt."""
        self.max_model_len = sizes.decoder.max_positions
        self.num_parameters = num_parameters(network)
        """Parameters of the encoder, the projection and the language model together, loaded or not."""
        self.device = torch.device("cpu")

    def move_to(self, device: torch.device | str, *, quantization: Quantization | None, role: Role = "all") -> Self:
        """Move the modules that a role needs to a device, and quantise the language model's weights on request.

        Raises:
            WeightsError: the library that quantises is not installed.
        """
        if quantization is not None and role != "encode":
            quantize(self.language_model, quantization, device=device)
        self.network.move_to(device, role=role)
        self.device = torch.device(device)
        return self

    def encode(self, pixel_values: Tensor) -> Tensor:
        """Encode normalised frames [B, T, 3, H, W], with T up to 100, into features [B, *feature_shape].

        Features are not projected yet. They do not depend on the prompt, so they can be cached by the video alone.
        """
        with torch.no_grad():
            return self.network.encode(pixel_values.to(self.device, self.dtype))

    def project(self, features: Tensor) -> Tensor:
        """Project features [*feature_shape] to video tokens [num_video_tokens, hidden]."""
        with torch.no_grad():
            return self.network.project(features.to(self.device, self.dtype))

    def tokenize(self, conversation: Conversation) -> tuple[tuple[int, ...] | VideoSlot, ...]:
        """Return the rendered prompt as token ids, segment by segment, with the video slots in between."""
        return tokenize_segments(self.tokenizer, self.template.render(conversation))


def blank(build: Callable[[ConfigT], NetworkT], config: ConfigT) -> NetworkT:
    """Build a network on the meta device, which takes no memory and computes no initial values."""
    with torch.device("meta"):
        return build(config)


def assemble(
    network: NetworkT, tensors: Mapping[str, Tensor], *, key_map: KeyMap, dtype: torch.dtype, role: Role = "all"
) -> NetworkT:
    """Fill a blank network for inference, on the CPU; tensors that are already in `dtype` are not copied.

    Modules that the role does not need stay on the meta device. The tensors must be complete for every role, because
    the digest that names features covers the whole checkpoint.

    Raises:
        WeightsError: the tensors do not cover every parameter exactly once.
    """
    network.to(dtype)  # gives the modules that stay blank their dtype
    wanted = None if role == "all" else lambda name: network.serves(name, role)
    load_strict(network, tensors, key_map=key_map, dtype=dtype, wanted=wanted)
    network.restore_buffers()
    return network.requires_grad_(False).eval()


@dataclass(frozen=True, slots=True, eq=False)
class EncodedClip:
    """The features of one clip, [*feature_shape], in any dtype on any device.

    `identity` names their content (fingerprint and content hash) for the prefix cache.
    """

    features: torch.Tensor
    identity: str


def tokenize_segments(tokenizer: Tokenizer, segments: Sequence[Part]) -> tuple[tuple[int, ...] | VideoSlot, ...]:
    """Tokenize each text with its own dummy prefix; the begin-of-sequence id goes before the first segment only.

    Raises:
        TokenizerError: the vocabulary lacks a special token.
    """
    return tuple(_tokenized(tokenizer, segment, bos=index == 0) for index, segment in enumerate(segments))


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
    """Build the engine's prompt; `clips[i]` holds the features of `conversation.clips[i]`."""
    assert len(clips) == len(conversation.clips), "every clip is encoded"
    return tuple(
        VideoSegment(family.project(clips[part.clip].features), clips[part.clip].identity)
        if isinstance(part, VideoSlot)
        else TextSegment(part)
        for part in family.tokenize(conversation)
    )


def count_prompt_tokens(family: Family, conversation: Conversation) -> int:
    """Return the positions of the prompt, video tokens included; needs no features."""
    return sum(
        family.num_video_tokens if isinstance(part, VideoSlot) else len(part) for part in family.tokenize(conversation)
    )

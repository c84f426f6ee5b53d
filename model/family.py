"""A loaded model of any family, and how it turns a conversation into a prompt."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor
from transformers import LlamaForCausalLM

from model.checkpoints.folder import SavedModel
from model.engine.sampling_params import SamplingParams
from model.engine.sequence import Condition, TextSegment, VideoSegment
from model.memory_estimate import num_parameters
from model.modalities import Modality, modalities_of
from model.networks.network import ConfigT, Network, NetworkT, SoundNetwork, VideoNetwork
from model.quantization import Quantization, quantize
from model.role import Role
from model.text.conversation import Conversation, Piece, Slot, SpecialToken, Template
from model.text.tokenizer import Tokenizer
from model.video.inputs import InputSpec
from model.weights import (
    KeyMap,
    WeightsError,
    checkpoint_digest,
    cover,
    encoder_digest,
    load_strict,
    seeded,
)


class Family:
    """One loaded model on one device, with the inputs that it expects.

    Raises:
        WeightsError: the tokenizer has more pieces than the language model has embeddings.
    """

    def __init__(
        self,
        network: Network,
        tokenizer: Tokenizer,
        *,
        name: str,
        checkpoint_digest: str,
        encoder_digest: str,
        inputs: InputSpec | None,
        template: Template,
        default_sampling: SamplingParams,
        time_axis: int | None = None,
    ) -> None:
        """Describe a network that is ready for inference.

        Args:
            network: from `assemble`; one that was assembled for a role can do only what that role does.
            tokenizer: of the language model.
            name: the family's name in the registry, e.g. `videochat`.
            checkpoint_digest: SHA-256 of all weights and sizes, hex.
            encoder_digest: SHA-256 of those that features depend on, hex; part of the fingerprint of cached features.
            inputs: what the encoder takes of a clip; None for a language model that sees no videos.
            template: how the family writes a prompt.
            default_sampling: the settings of the published demo.
            time_axis: numbers in answers are times, in fractions of the clip with this denominator; None: they are not.
        """
        sizes = network.config
        if tokenizer.vocab_size > sizes.decoder.vocab_size:
            raise WeightsError("The tokenizer has more pieces than the language model has rows.")
        assert (inputs is None) == (not sizes.parts), "a model has features if it sees videos"
        self.network, self.tokenizer = network, tokenizer
        self.name, self.checkpoint_digest, self.encoder_digest = name, checkpoint_digest, encoder_digest
        self.inputs, self.parts, self.condition_shapes = inputs, sizes.parts, sizes.condition_shapes
        self.template, self.default_sampling, self.time_axis = template, default_sampling, time_axis
        self.language_model: LlamaForCausalLM = network.decoder
        self.dtype = next(network.parameters()).dtype
        """The dtype that the encoder computes in."""
        self.max_model_len = sizes.decoder.max_positions
        self.num_parameters = num_parameters(network)
        """Parameters of the encoder, the projection and the language model together, loaded or not."""
        self.device = torch.device("cpu")

    @property
    def modalities(self) -> tuple[Modality, ...]:
        """What the model answers questions about."""
        return modalities_of(self.inputs)

    @property
    def num_video_tokens(self) -> int:
        """Positions of one clip in a prompt, all its parts together."""
        return sum(map(self.num_rows, (part.name for part in self.parts)))

    def num_rows(self, part: str) -> int:
        """Return the positions of one slot of a part in a prompt; known without features."""
        return next(self.network.config.num_rows(spec) for spec in self.parts if spec.name == part)

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

    def encode(self, pixel_values: Tensor, mel: Tensor | None = None) -> dict[str, Tensor]:
        """Encode normalised pictures [B, T, 3, H, W] into features: by part, [B, rows, width].

        `mel` are the spectrograms [B, count, 1, bins, steps] of clips with sound, for a model that hears.
        Features are not projected yet. They do not depend on the prompt, so they can be cached by the video alone.
        """
        network, pixel_values = self.network, pixel_values.to(self.device, self.dtype)
        assert isinstance(network, VideoNetwork), "the model sees videos"
        with torch.no_grad():
            if mel is None:
                return network.encode(pixel_values)
            assert isinstance(network, SoundNetwork), "the model hears"
            return network.encode(pixel_values, mel.to(self.device, self.dtype))

    def project(self, part: str, features: Tensor) -> Tensor:
        """Project the features of one part, [rows, width], to rows of the prompt, [num_rows, hidden]."""
        assert isinstance(self.network, VideoNetwork), "the model sees videos"
        with torch.no_grad():
            return self.network.project(part, features.to(self.device, self.dtype))

    def condition(self, clips: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor] | None:
        """Compute the tensors that all layers use from the features of all clips of a conversation, by part.

        Returns:
            Tensors of `condition_shapes`; None if there are none.
        """
        if not isinstance(self.network, VideoNetwork):
            return None
        with torch.no_grad():
            return self.network.condition(
                [{part: rows.to(self.device, self.dtype) for part, rows in clip.items()} for clip in clips]
            )

    def tokenize(self, conversation: Conversation) -> tuple[tuple[int, ...] | Slot, ...]:
        """Return the rendered prompt as token ids, segment by segment, with the slots in between."""
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
    network.merge()
    return network.requires_grad_(False).eval()


def build_family(
    saved: SavedModel[ConfigT],
    build: Callable[[ConfigT], NetworkT],
    tokenizer: Tokenizer,
    *,
    name: str,
    key_map: KeyMap,
    dtype: torch.dtype,
    role: Role,
    inputs: InputSpec | None,
    template: Template,
    time_axis: int | None = None,
) -> Family:
    """Build the network of a saved model, fill it for a role, on the CPU, and describe it; see `Family` and `assemble`.

    Raises:
        WeightsError: the tensors do not cover every parameter exactly once, or the tokenizer is another model's.
    """
    network = blank(build, saved.config)
    digest = saved.encoder_digest or encoder_digest(
        {
            parameter: saved.tensors[key]
            for parameter, (key, _) in cover(network, saved.tensors, key_map=key_map).items()
            if network.serves(parameter, "encode")
        },
        saved.config.to_json(),
    )
    return Family(
        assemble(network, saved.tensors, key_map=key_map, dtype=dtype, role=role),
        tokenizer,
        name=name,
        checkpoint_digest=saved.digest,
        encoder_digest=digest,
        inputs=inputs,
        template=template,
        default_sampling=saved.sampling,
        time_axis=time_axis,
    )


def seeded_model(
    build: Callable[[ConfigT], NetworkT], config: ConfigT, *, seed: int, sampling: SamplingParams
) -> SavedModel[ConfigT]:
    """Return a small, untrained model with the random values of `model.weights.seeded`, as if it had been saved."""
    tensors = seeded(blank(build, config), seed=seed)
    digest = checkpoint_digest(tensors, config.to_json())
    return SavedModel(config=config, tensors=tensors, digest=digest, sampling=sampling)


@dataclass(frozen=True, slots=True, eq=False)
class EncodedClip:
    """The features of one clip: by part, [rows, width], in any dtype on any device.

    `identity` names their content (fingerprint and content hash) for the prefix cache.
    """

    features: Mapping[str, torch.Tensor]
    identity: str


def tokenize_segments(tokenizer: Tokenizer, segments: Sequence[Piece]) -> tuple[tuple[int, ...] | Slot, ...]:
    """Tokenize each text with its own dummy prefix; the begin-of-sequence id goes before the first segment only.

    Raises:
        TokenizerError: the vocabulary lacks a special token.
    """
    return tuple(_tokenized(tokenizer, segment, bos=index == 0) for index, segment in enumerate(segments))


def _tokenized(tokenizer: Tokenizer, segment: Piece, *, bos: bool) -> tuple[int, ...] | Slot:
    match segment:
        case Slot():
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
        _filled(family, piece, clips[piece.clip]) if isinstance(piece, Slot) else TextSegment(piece)
        for piece in family.tokenize(conversation)
    )


def build_condition(family: Family, clips: Sequence[EncodedClip]) -> Condition | None:
    """Build the condition of a conversation about these clips; its identity names all of them, in order."""
    if not family.condition_shapes:
        return None
    tensors = family.condition([clip.features for clip in clips])
    return None if tensors is None else Condition(tensors, repr([clip.identity for clip in clips]))


def _filled(family: Family, slot: Slot, clip: EncodedClip) -> VideoSegment:
    rows = family.project(slot.part, clip.features[slot.part])
    return VideoSegment(rows, f"{clip.identity} {slot.part}")


def count_prompt_tokens(family: Family, conversation: Conversation) -> int:
    """Return the positions of the prompt, slots included; needs no features."""
    return sum(
        family.num_rows(piece.part) if isinstance(piece, Slot) else len(piece)
        for piece in family.tokenize(conversation)
    )

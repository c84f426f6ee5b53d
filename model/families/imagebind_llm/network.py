"""The ImageBind-LLM network in any sizes: ImageBind's encoders, the bridge, the adapter of each layer, LLaMA.

Videos take no positions in the prompt. The bridge maps all that is seen and heard to one vector, and each of the last
layers adds its values, times a gate, to the attention of every token (LLaMA-Adapter, arXiv:2303.16199). There is one
adapter token, so its softmax is 1, and what is added is the same at all positions.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

from model.engine.packed_linear import project_values
from model.engine.sequence import ADDED
from model.families.imagebind_llm.low_rank import LayerAdapter, add_biases, merge_adapter
from model.features import AUDIO, VIDEO, PartSpec
from model.networks.imagebind_audio import ImageBindAudio, ImageBindAudioConfig
from model.networks.imagebind_vision import ImageBindVision, ImageBindVisionConfig
from model.networks.llama import build_llama
from model.networks.network import NetworkConfig, SoundNetwork

NUM_CROPS = 3
"""Squares of each frame."""
BRIDGE_BLOCKS = 3
BRIDGE_EPS = 1e-6


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageBindLLMConfig(NetworkConfig):
    """Every size of an ImageBind-LLM network."""

    vision: ImageBindVisionConfig
    audio: ImageBindAudioConfig | None
    """None for a model that does not hear."""
    bridge_width: int
    """Hidden width of the bridge's blocks."""
    num_query_layers: int
    """The last layers of LLaMA, to which the adapter adds."""
    lora_rank: int

    @property
    def parts(self) -> tuple[PartSpec, ...]:
        """What ImageBind sees and hears in one clip, each one vector [1, E]."""
        video = PartSpec(name=VIDEO, shape=(1, self.vision.out_width))
        if self.audio is None:
            return (video,)
        return (video, PartSpec(name=AUDIO, shape=(1, self.audio.out_width), optional=True))

    @property
    def condition_shapes(self) -> Mapping[str, tuple[int, ...]]:
        """What each layer adds to its attention, [layers, heads, head_dim]."""
        decoder = self.decoder
        return {ADDED: (decoder.depth, decoder.num_heads, decoder.width // decoder.num_heads)}

    def num_rows(self, part: PartSpec) -> int:  # noqa: ARG002
        """Return 0: videos take no positions."""
        return 0


class BridgeBlock(nn.Module):
    """A norm and a gated MLP (SwiGLU) without biases."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(width, eps=BRIDGE_EPS)
        self.f1 = nn.Linear(width, hidden, bias=False)
        self.f2 = nn.Linear(hidden, width, bias=False)
        self.f3 = nn.Linear(width, hidden, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[..., C] to [..., C]."""
        normed = self.norm(x)
        added: Tensor = self.f2(functional.silu(self.f1(normed)) * self.f3(normed))
        return x + added


class ImageBindLLMNetwork(SoundNetwork):
    """All modules of one ImageBind-LLM model, with initial values."""

    config: ImageBindLLMConfig
    encoding = frozenset({"vision", "audio"})

    def __init__(self, config: ImageBindLLMConfig) -> None:
        super().__init__()
        width = config.decoder.width
        self.config = config
        self.vision = ImageBindVision(config.vision)
        self.audio = None if config.audio is None else ImageBindAudio(config.audio)
        self.bridge = nn.Sequential(
            nn.Linear(config.vision.out_width, width),
            *(BridgeBlock(width, config.bridge_width) for _ in range(BRIDGE_BLOCKS)),
        )
        self.prefix_query = nn.Parameter(torch.randn(config.num_query_layers, width) * 0.02)
        self.adapters = nn.ModuleList(
            LayerAdapter(config.decoder, config.lora_rank) for _ in range(config.decoder.depth)
        )
        self.language_model = build_llama(config.decoder)
        add_biases(self.language_model)

    @property
    def decoder(self) -> LlamaForCausalLM:
        """The language model."""
        return self.language_model

    def encode(self, pixel_values: Tensor, mel: Tensor | None = None) -> dict[str, Tensor]:
        """Encode frames [B, T * 3, 3, S, S] and mel spectrograms [B, count, 1, bins, steps] into vectors [B, 1, E].

        The frames are those of the rule `windows`, in three crops each.
        """
        inputs = in_windows(pixel_values, num_frames=self.config.vision.num_frames)
        parts = {VIDEO: self.see(inputs).mean(1, keepdim=True)}
        if mel is not None:
            parts[AUDIO] = self.hear(mel).mean(1, keepdim=True)
        return parts

    def see(self, inputs: Tensor) -> Tensor:
        """Encode normalised crops of windows [B, N, 3, frames, S, S] into vectors [B, N, E] of length 1."""
        vectors: Tensor = self.vision(inputs.flatten(0, 1))
        return vectors.reshape(*inputs.shape[:2], -1)

    def hear(self, mel: Tensor) -> Tensor:
        """Encode mel spectrograms [B, count, 1, bins, steps] into vectors [B, count, E] of one length."""
        assert self.audio is not None, "the model hears"
        vectors: Tensor = self.audio(mel.flatten(0, 1))
        return vectors.reshape(*mel.shape[:2], -1)

    def project(self, part: str, features: Tensor) -> Tensor:  # noqa: ARG002
        """Return no rows of the prompt, [..., 0, hidden]."""
        return features.new_zeros(*features.shape[:-2], 0, self.config.decoder.width)

    def condition(self, clips: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor] | None:
        """Compute what the layers add for a conversation; all parts of all clips have the same weight."""
        vectors = [clip[part] for clip in clips for part in sorted(clip)]
        if not vectors:
            return None
        return {ADDED: self.injection(self.query(weighted_mean(vectors, [1.0] * len(vectors))))}

    def query(self, scene: Tensor) -> Tensor:
        """Map a scene [1, E] to the visual query [1, hidden], with the bridge."""
        out: Tensor = self.bridge(scene)
        return out

    def injection(self, query: Tensor) -> Tensor:
        """Compute what each layer adds to its attention from the visual query [1, hidden]: [layers, heads, head_dim].

        The values are those of LLaMA's own projection, without the adapter's low-rank update of it.
        """
        sizes = self.config.decoder
        first = sizes.depth - self.config.num_query_layers
        added = []
        for (layer, adapter), prefix in zip(self._layers()[first:], self.prefix_query, strict=True):
            token = query + prefix  # [1, hidden]
            values = project_values(layer.self_attn, token) - adapter.lora["wv"](token)
            added.append(adapter.gate[0, :, :, 0].tanh() * values.view(sizes.num_heads, -1))
        return torch.cat((added[0].new_zeros(first, *added[0].shape), torch.stack(added)))

    def merge(self) -> None:
        """Add the low-rank updates to LLaMA's matrices, whose rows get transformers' order; that of values is kept."""
        for layer, adapter in self._layers():
            merge_adapter(layer, adapter, num_heads=self.config.decoder.num_heads)

    def _layers(self) -> list[tuple[LlamaDecoderLayer, LayerAdapter]]:
        adapters = [adapter for adapter in self.adapters if isinstance(adapter, LayerAdapter)]
        return list(zip(self.language_model.model.layers, adapters, strict=True))


def weighted_mean(vectors: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """Return the weighted mean of vectors [1, E] after each is normalised; the original adds 1e-6 to the divisor."""
    total = sum(functional.normalize(vector, dim=-1) * weight for vector, weight in zip(vectors, weights, strict=True))
    assert isinstance(total, Tensor), "there is a vector"
    return total / (sum(weights) + 1e-6)


def in_windows(pixel_values: Tensor, *, num_frames: int) -> Tensor:
    """Arrange squares [B, T * 3, 3, S, S] by windows: [B, T / num_frames * 3, 3, num_frames, S, S], crops inside."""
    num_clips, _, *shape = pixel_values.shape
    by_window = pixel_values.reshape(num_clips, -1, num_frames, NUM_CROPS, *shape)  # crops are inside frames
    return by_window.permute(0, 1, 3, 4, 2, 5, 6).flatten(1, 2)

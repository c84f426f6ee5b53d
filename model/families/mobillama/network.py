"""The MobiLlama network in any sizes: a LLaMA whose MLP can be one module for all layers."""

from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

from transformers import LlamaForCausalLM

from model.networks.llama import build_llama
from model.networks.network import Network, NetworkConfig

Prompt = Literal["one-shot", "plain"]
"""How a checkpoint is prompted: as an assistant, after one example exchange, or with a text that it continues."""


@dataclass(frozen=True, kw_only=True, slots=True)
class MobiLlamaConfig(NetworkConfig):
    """Every size of a MobiLlama network, and how it is prompted."""

    shared_mlp: bool
    """Whether all layers have one MLP (0.5B, 0.8B), or each its own (1B)."""
    prompt: Prompt = "one-shot"

    def __post_init__(self) -> None:
        NetworkConfig.__post_init__(self)
        if self.prompt not in get_args(Prompt):
            raise ValueError(f"prompt is {self.prompt!r}, not one of {', '.join(get_args(Prompt))}")


class MobiLlamaNetwork(Network):
    """A LLaMA with initial values. With a shared MLP, every layer's `mlp` is the same module."""

    config: MobiLlamaConfig
    encoding: ClassVar[frozenset[str]] = frozenset()

    def __init__(self, config: MobiLlamaConfig) -> None:
        super().__init__()
        self.config = config
        self.language_model = build_llama(config.decoder)
        if config.shared_mlp:
            first, *others = self.language_model.model.layers
            for layer in others:
                layer.mlp = first.mlp

    @property
    def decoder(self) -> LlamaForCausalLM:
        """The language model."""
        return self.language_model

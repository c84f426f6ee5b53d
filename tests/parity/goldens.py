"""Where the reference tensors lie, how near is equal, and a golden set's sizes in our words."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from model.networks.eva_vit import VisionConfig
from model.networks.llama import DecoderConfig
from model.networks.videochat import QFormerConfig, VideoChatConfig

TOLERANCE = 2e-5
"""Of the largest expected value: some five times the noise of float32, far below every mistake tried."""


def read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def assert_near(got: Tensor, expected: Tensor, what: str) -> None:
    """Equal but for the noise of float32."""
    assert got.shape == expected.shape, what
    error = (got - expected).abs().max() / expected.abs().max()
    assert error <= TOLERANCE, f"{what}: off by {error:.1e} of the largest value"


def videochat_config(folder: Path) -> VideoChatConfig:
    sizes = read_json(folder / "config.json")
    vit, qformer, llama = sizes["vit"], sizes["qformer"], sizes["llama"]
    return VideoChatConfig(
        num_frames=sizes["num_frames"],
        vision=VisionConfig(
            image_size=vit["img_size"],
            patch_size=vit["patch_size"],
            width=vit["embed_dim"],
            depth=vit["depth"],
            num_heads=vit["num_heads"],
            num_global_blocks=vit["gmhra_layers"],
            mlp_ratio=vit["mlp_ratio"],
        ),
        qformer=QFormerConfig(
            width=qformer["hidden_size"],
            depth=qformer["num_hidden_layers"],
            num_heads=qformer["num_attention_heads"],
            mlp_width=qformer["intermediate_size"],
            num_queries=qformer["num_query_token"],
            num_extra_queries=qformer["extra_num_query_token"],
            cross_every=qformer["cross_attention_freq"],
        ),
        decoder=DecoderConfig(
            vocab_size=llama["vocab_size"],
            width=llama["hidden_size"],
            depth=llama["num_hidden_layers"],
            num_heads=llama["num_attention_heads"],
            mlp_width=llama["intermediate_size"],
            max_positions=llama["max_position_embeddings"],
            rms_eps=llama["rms_norm_eps"],
        ),
    )


@dataclass
class Stages:
    """What every named module of a network gave in its last forward pass."""

    outputs: dict[str, Tensor]

    @classmethod
    def of(cls, network: nn.Module) -> "Stages":
        stages = cls({})
        for name, module in network.named_modules():
            module.register_forward_hook(lambda _, __, output, name=name: stages.keep(name, output))
        return stages

    def keep(self, name: str, output: object) -> None:
        output = output[0] if isinstance(output, tuple) else output
        if isinstance(output, torch.Tensor):
            self.outputs[name] = output


def tensors(path: Path) -> dict[str, Tensor]:
    read: dict[str, Tensor] = load_file(path)
    return read

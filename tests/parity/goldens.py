"""Compares tensors with references within a tolerance, and records the outputs of modules."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

TOLERANCE = 2e-5
"""Tolerance relative to the largest expected value: five times the noise of float32, below every mistake tried."""


def read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def assert_near(got: Tensor, expected: Tensor, what: str) -> None:
    """Assert equality within the noise of float32."""
    assert got.shape == expected.shape, what
    error = (got - expected).abs().max() / expected.abs().max()
    assert error <= TOLERANCE, f"{what}: off by {error:.1e} of the largest value"


@dataclass
class Stages:
    """The output of every named module of a network in its last forward pass."""

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

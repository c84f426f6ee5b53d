"""Quantises the linear layers of a LLaMA to 8 or 4 bits; activations, embeddings and the head are not quantised.

int8 uses torchao, with one scale per row; int4 is the 4-bit NormalFloat of bitsandbytes (NF4, QLoRA), with one scale
per 64 weights. Both libraries are optional, imported on use, and compute on the CPU as well as on a GPU.
"""

import ctypes
from collections.abc import Callable
from types import ModuleType
from typing import TYPE_CHECKING

import torch
from torch import nn

from model.weight_bits import Quantization as Quantization  # noqa: PLC0414  others import it from here
from model.weights import WeightsError

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM

INT4_GROUP = 64
"""Weights that share one float32 scale."""


def quantize(network: "LlamaForCausalLM", kind: Quantization, *, device: torch.device | str) -> None:
    """Quantise every linear layer of the decoder's blocks in place, one by one, each on `device`.

    The memory of `device` never holds more than the quantised layers and one unquantised layer. Modules that are not
    quantised are not moved.

    Raises:
        WeightsError: the library is not installed.
    """
    replace = {"int8": _to_int8, "int4": _to_int4}[kind]()
    layers = [
        (parent, name)
        for parent in network.model.layers.modules()
        for name, child in parent.named_children()
        if isinstance(child, nn.Linear)
    ]
    for parent, name in layers:  # holds no reference to a layer, so that a replaced one is freed
        setattr(parent, name, replace(getattr(parent, name), torch.device(device)))
    _trim_heap()


def _trim_heap() -> None:
    """Return freed memory to the system: glibc keeps it between the layers, 1 GiB for the 7B model in int4."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def linear_layers(network: "LlamaForCausalLM") -> list[nn.Linear]:
    """Return the layers that `quantize` replaces."""
    return [module for module in network.model.layers.modules() if isinstance(module, nn.Linear)]


def quantized_bytes(kind: Quantization, shape: tuple[int, int], *, scale_bytes: int) -> int:
    """Return the bytes of a linear layer of `shape`: its weights, and a scale per row (int8) or per group (int4)."""
    num_rows, num_columns = shape
    num_weights = num_rows * num_columns
    return num_weights + num_rows * scale_bytes if kind == "int8" else num_weights // 2 + num_weights // INT4_GROUP * 4


_Replace = Callable[[nn.Linear, torch.device], nn.Module]


def _to_int8() -> _Replace:
    library = _imported("torchao.quantization")

    def replace(linear: nn.Linear, device: torch.device) -> nn.Module:
        linear = linear.to(device)
        library.quantize_(linear, library.Int8WeightOnlyConfig())
        return linear.requires_grad_(False)

    return replace


def _to_int4() -> _Replace:
    library = _imported("bitsandbytes.nn")

    def replace(linear: nn.Linear, device: torch.device) -> nn.Module:
        weight, bias = linear.weight, linear.bias
        with torch.device("meta"):
            packed: nn.Module = library.Linear4bit(
                linear.in_features,
                linear.out_features,
                bias=bias is not None,
                compute_dtype=weight.dtype,
                quant_type="nf4",
            )
        packed.weight = library.Params4bit(
            weight.detach(), requires_grad=False, quant_type="nf4", blocksize=INT4_GROUP, compress_statistics=False
        )
        if bias is not None:
            packed.bias = bias
        return packed.to(device)

    return replace


def _imported(name: str) -> ModuleType:
    import importlib

    try:
        return importlib.import_module(name)
    except ImportError as error:
        package = name.partition(".")[0]
        raise WeightsError(
            f"Weights in fewer bits need {package}, which is not installed: pip install {package}."
        ) from error

"""What ImageBind-LLM's adapter adds to each layer of LLaMA: biases, low-rank updates of matrices, a gate.

A checkpoint holds them apart, in the row order of the original LLaMA. After loading they are merged, so that the layers
are those of transformers.
"""

import torch
from torch import Tensor, nn
from transformers import LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

from model.networks.llama import DecoderConfig

MODULES = {
    "wq": "self_attn.q_proj",
    "wk": "self_attn.k_proj",
    "wv": "self_attn.v_proj",
    "wo": "self_attn.o_proj",
    "w1": "mlp.gate_proj",
    "w2": "mlp.down_proj",
    "w3": "mlp.up_proj",
}
"""The names of a layer's matrices in the original LLaMA, and in transformers."""
BIASED = ("wq", "wo", "w1", "w2", "w3")
ROTATED = ("wq", "wk")
"""The matrices whose rows are rotated by positions."""


class LowRank(nn.Module):
    """The update of a matrix: l2 of l1 of x, without a factor."""

    def __init__(self, num_inputs: int, num_outputs: int, rank: int) -> None:
        super().__init__()
        self.l1 = nn.Linear(num_inputs, rank, bias=False)
        self.l2 = nn.Linear(rank, num_outputs, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[..., in] to [..., out]."""
        out: Tensor = self.l2(self.l1(x))
        return out

    def matrix(self) -> Tensor:
        """Return what is added to the matrix, [out, in], float32."""
        return self.l2.weight.float() @ self.l1.weight.float()


class LayerAdapter(nn.Module):
    """The gate of one layer, [1, heads, 1, 1], and its low-rank updates; after `merge_adapter` only that of values."""

    def __init__(self, sizes: DecoderConfig, rank: int) -> None:
        super().__init__()
        width, hidden = sizes.width, sizes.mlp_width
        shapes = {"w1": (width, hidden), "w2": (hidden, width), "w3": (width, hidden)}
        self.gate = nn.Parameter(torch.zeros(1, sizes.num_heads, 1, 1))
        self.lora = nn.ModuleDict({name: LowRank(*shapes.get(name, (width, width)), rank) for name in MODULES})


def add_biases(llama: LlamaForCausalLM) -> None:
    """Give the matrices of `BIASED` a bias. transformers gives it to all of attention, or to none."""
    for layer in llama.model.layers:
        for name in BIASED:
            parent, _, child = MODULES[name].partition(".")
            linear = getattr(getattr(layer, parent), child)
            setattr(getattr(layer, parent), child, nn.Linear(linear.in_features, linear.out_features))


@torch.no_grad()
def merge_adapter(layer: LlamaDecoderLayer, adapter: LayerAdapter, *, num_heads: int) -> None:
    """Add the updates to the matrices of a layer, in float32, and bring their rows into the order of transformers."""
    for name, path in MODULES.items():
        linear = layer.get_submodule(path)
        update = adapter.lora[name]
        assert isinstance(update, LowRank)
        weight = (linear.weight.float() + update.matrix()).to(linear.weight.dtype)
        tensors = {"weight": weight, "bias": linear.bias}
        for kind, tensor in tensors.items():
            if tensor is not None:
                rows = half_split(tensor, num_heads) if name in ROTATED else tensor
                setattr(linear, kind, nn.Parameter(rows, requires_grad=False))
        if name != "wv":
            del adapter.lora[name]


def half_split(rows: Tensor, num_heads: int) -> Tensor:
    """Reorder the rows [heads * head_dim, ...] of queries or keys for rotary embedding.

    The original LLaMA rotates neighbours, transformers the first half of a head with the second.
    """
    return rows.reshape(num_heads, -1, 2, *rows.shape[1:]).transpose(1, 2).reshape(rows.shape)

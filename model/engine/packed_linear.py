"""Linear layers whose weights are packed for the CPU's matrix kernels, and the layers of a LLaMA that fuse them.

torch reorders a float32 weight in every product, and on a CPU without 16-bit arithmetic it multiplies 16-bit matrices
value by value. Packed once, a float32 weight is used by oneDNN's kernels, and a 16-bit weight, as float16, by FBGEMM's,
which widen it in registers: activations and sums are float32. Milliseconds for 768 x 2,048 on two such cores, plain and
packed: float32 1 row 0.52 and 0.28, 16 rows 0.81 and 0.51; bfloat16 1 row 0.12 and 0.11, 16 rows 1.76 and 0.39, 80 rows
10.3 and 2.1.

Projections of the same rows are fused into one product: query, key and value in `PackedAttention`, gate and up in
`PackedMLP`.
"""

from collections import Counter
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from transformers.models.llama.modeling_llama import LlamaAttention, LlamaMLP, apply_rotary_pos_emb

from model.engine.attention import AttentionPlan, attend


class PackedLinear(nn.Module):
    """A linear layer with a packed weight; it keeps no reference to the weight it was made from.

    A bfloat16 weight below 6e-5 is rounded to the nearest float16, at most 3e-8 away; any other is kept exactly.
    """

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self._product = _product([linear])

    def forward(self, x: Tensor) -> Tensor:
        """[..., in] to [..., out], float32."""
        return self._product(x.float())


class FusedLinear(nn.Module):
    """Several linear layers of the same input, as one product with their packed weights."""

    def __init__(self, *linears: nn.Linear) -> None:
        super().__init__()
        self._sizes = [linear.out_features for linear in linears]
        self._product = _product(linears)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """[..., in] to the output [..., out] of each layer, float32; views of one tensor."""
        return torch.split(self._product(x.float()), self._sizes, dim=-1)


class PackedAttention(nn.Module):
    """`LlamaAttention` with one product for query, key and value; attends by the plan of the step."""

    def __init__(self, layer: LlamaAttention) -> None:
        super().__init__()
        assert layer.layer_idx is not None
        self.layer_idx: int = layer.layer_idx
        self._head_dim: int = layer.head_dim
        self._scaling: float = layer.scaling
        self.qkv_proj = FusedLinear(layer.q_proj, layer.k_proj, layer.v_proj)
        self.o_proj = PackedLinear(layer.o_proj)

    def forward(
        self,
        hidden_states: Tensor,
        position_embeddings: tuple[Tensor, Tensor],
        *,
        plan: AttentionPlan,
        attention_mask: Tensor | None = None,
        **_: object,
    ) -> tuple[Tensor, None]:
        """Hidden states [1, rows, hidden] to the same shape, and None in place of the weights."""
        shape = (*hidden_states.shape[:-1], -1, self._head_dim)
        query, key, value = (part.view(shape).transpose(1, 2) for part in self.qkv_proj(hidden_states))
        query, key = apply_rotary_pos_emb(query, key, *position_embeddings)
        result, _weights = attend(self, query, key, value, attention_mask, plan=plan, scaling=self._scaling)
        out: Tensor = self.o_proj(result.reshape(*hidden_states.shape[:-1], -1))
        return out, None


class PackedMLP(nn.Module):
    """`LlamaMLP` with one product for gate and up."""

    def __init__(self, layer: LlamaMLP) -> None:
        super().__init__()
        self.gate_up_proj = FusedLinear(layer.gate_proj, layer.up_proj)
        self.down_proj = PackedLinear(layer.down_proj)
        self._activation: Callable[[Tensor], Tensor] = layer.act_fn

    def forward(self, x: Tensor) -> Tensor:
        """[..., hidden] to the same shape, float32."""
        gate, up = self.gate_up_proj(x)
        out: Tensor = self.down_proj(self._activation(gate) * up)
        return out


def pack_linears(network: nn.Module) -> bool:
    """Replace the linear layers of a network by packed ones, if this CPU computes these faster.

    The attention layers and MLPs of transformers' LLaMA are replaced as a whole; any other linear layer by itself. A
    layer that several modules share is packed once and stays shared. A network with quantised layers, or others that
    are only similar to `nn.Linear`, is not changed.

    Returns:
        Whether the network was changed. If so, its activations should be float32.
    """
    weights = [module.weight for module in network.modules() if isinstance(module, nn.Linear)]
    if not is_plain(network) or not all(weight.device.type == "cpu" and _gains(weight.dtype) for weight in weights):
        return False
    _replace_children(network, shared=_shared_layers(network))
    return True


def is_plain(network: nn.Module) -> bool:
    """Whether a network has linear layers, and all of them are plain `nn.Linear` with plain tensors as weights."""
    linears = [module for module in network.modules() if isinstance(module, nn.Linear)]
    return bool(linears) and all(type(each) is nn.Linear and type(each.weight.data) is Tensor for each in linears)


def project_values(attention: nn.Module, x: Tensor) -> Tensor:
    """Project rows [..., hidden] to the values of an attention layer, [..., num_kv_heads * head_dim], packed or not."""
    if isinstance(attention, PackedAttention):
        _, _, packed = attention.qkv_proj.forward(x)
        return packed
    projection = attention.v_proj
    assert isinstance(projection, nn.Module)
    values: Tensor = projection(x)
    return values


def _shared_layers(network: nn.Module) -> dict[nn.Module, nn.Module | None]:
    """The modules that have several parents, with their packed layers, which are None before they are packed."""
    parents = Counter(child for module in network.modules() for child in module.children())
    return {module: None for module, count in parents.items() if count > 1}


def _replace_children(parent: nn.Module, *, shared: dict[nn.Module, nn.Module | None]) -> None:
    """Replace layers one by one, so that at most one layer, besides shared ones, has both its weights in memory."""
    for name, child in parent.named_children():
        packed = shared.get(child) or _packed(child)
        if child in shared:
            shared[child] = packed
        if packed is None:
            _replace_children(child, shared=shared)
        else:
            setattr(parent, name, packed)


def _packed(layer: nn.Module) -> nn.Module | None:
    """The packed layer for a layer of a known type; None for any other."""
    if type(layer) is LlamaAttention and _are_linear(layer, "q_proj", "k_proj", "v_proj", "o_proj"):
        return PackedAttention(layer)
    if type(layer) is LlamaMLP and _are_linear(layer, "gate_proj", "up_proj", "down_proj"):
        return PackedMLP(layer)
    return PackedLinear(layer) if isinstance(layer, nn.Linear) else None


def _are_linear(layer: nn.Module, *names: str) -> bool:
    """Whether these children are linear layers; adapters replace them by modules of their own."""
    return all(isinstance(getattr(layer, name), nn.Linear) for name in names)


def _gains(dtype: torch.dtype) -> bool:
    """Whether this CPU and this build of torch have the kernels for packed weights, and no faster ones."""
    if dtype == torch.float32:
        return torch._C._has_mkldnn and hasattr(torch.ops.mkldnn, "_reorder_linear_weight")
    in_hardware = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return (
        dtype in (torch.bfloat16, torch.float16)
        and not in_hardware
        and "fbgemm" in torch.backends.quantized.supported_engines
    )


def _product(linears: Sequence[nn.Linear]) -> Callable[[Tensor], Tensor]:
    """The product with the weights of all layers, one below the other."""
    with torch.no_grad():
        first = linears[0]
        weight = first.weight if len(linears) == 1 else torch.cat([linear.weight for linear in linears])
        bias = None
        if any(linear.bias is not None for linear in linears):
            bias = torch.cat([_bias_of(linear) for linear in linears]).float()
        return (_float32 if weight.dtype == torch.float32 else _float16)(weight.detach(), bias)


def _bias_of(linear: nn.Linear) -> Tensor:
    return linear.weight.new_zeros(linear.out_features) if linear.bias is None else linear.bias


def _float32(weight: Tensor, bias: Tensor | None) -> Callable[[Tensor], Tensor]:
    packed = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous())

    def product(x: Tensor) -> Tensor:
        out: Tensor = torch.ops.mkldnn._linear_pointwise(x, packed, bias, "none", [], "")
        return out

    return product


def _float16(weight: Tensor, bias: Tensor | None) -> Callable[[Tensor], Tensor]:
    packed = torch.ops.quantized.linear_prepack_fp16(weight.float(), bias)

    def product(x: Tensor) -> Tensor:
        out: Tensor = torch.ops.quantized.linear_dynamic_fp16(x, packed)
        return out

    return product

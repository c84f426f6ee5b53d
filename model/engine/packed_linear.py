"""Linear layers whose weights lie in memory as the CPU's matrix kernels read them.

torch reorders a float32 weight at every product; and on a CPU without 16-bit arithmetic it multiplies 16-bit matrices
value by value. Laid out once, a float32 weight goes to oneDNN's kernels, and a 16-bit one, as float16, to FBGEMM's,
which widen it in registers: activations and sums are float32. Milliseconds for 768 x 2,048 on two such cores, as torch
has it and laid out: float32 1 row 0.52 and 0.28, 16 rows 0.81 and 0.51; bfloat16 1 row 0.12 and 0.11, 16 rows 1.76
and 0.39, 80 rows 10.3 and 2.1.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn


class PackedLinear(nn.Module):
    """A linear layer with its weight laid out anew; the weight it was made from is let go.

    A bfloat16 weight under 6e-5 is rounded to the nearest float16, at most 3e-8 away; any other is kept exactly.
    """

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self._product = (_float32 if linear.weight.dtype == torch.float32 else _float16)(linear)

    def forward(self, x: Tensor) -> Tensor:
        """[..., in] to [..., out], float32."""
        return self._product(x.float())


def pack_linears(network: nn.Module) -> bool:
    """Put a `PackedLinear` in the place of every linear layer, where this CPU is faster so.

    A network with quantised layers, or others that only look like linear ones, stays as it is.

    Returns:
        Whether it was done. If so, activations are best float32.
    """
    places = [
        (parent, name)
        for parent in network.modules()
        for name, child in parent.named_children()
        if isinstance(child, nn.Linear)
    ]
    linears = (getattr(parent, name) for parent, name in places)
    if not places or not all(_is_plain(linear) and _gains(linear.weight.dtype) for linear in linears):
        return False
    for parent, name in places:  # one by one, so that there are never two of more than one layer
        setattr(parent, name, PackedLinear(getattr(parent, name)))
    return True


def _is_plain(linear: nn.Linear) -> bool:
    weight = linear.weight
    return type(linear) is nn.Linear and type(weight.data) is Tensor and weight.device.type == "cpu"


def _gains(dtype: torch.dtype) -> bool:
    """Whether this CPU and this build of torch have the kernels, and no faster ones."""
    if dtype == torch.float32:
        return torch._C._has_mkldnn and hasattr(torch.ops.mkldnn, "_reorder_linear_weight")
    in_hardware = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return (
        dtype in (torch.bfloat16, torch.float16)
        and not in_hardware
        and "fbgemm" in torch.backends.quantized.supported_engines
    )


def _float32(linear: nn.Linear) -> Callable[[Tensor], Tensor]:
    bias = None if linear.bias is None else linear.bias.detach()
    with torch.no_grad():
        packed = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach().contiguous())

    def product(x: Tensor) -> Tensor:
        out: Tensor = torch.ops.mkldnn._linear_pointwise(x, packed, bias, "none", [], "")
        return out

    return product


def _float16(linear: nn.Linear) -> Callable[[Tensor], Tensor]:
    bias = None if linear.bias is None else linear.bias.detach().float()
    with torch.no_grad():
        packed = torch.ops.quantized.linear_prepack_fp16(linear.weight.detach().float(), bias)

    def product(x: Tensor) -> Tensor:
        out: Tensor = torch.ops.quantized.linear_dynamic_fp16(x, packed)
        return out

    return product

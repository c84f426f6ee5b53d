"""Linear layers whose weights lie in memory as the CPU's matrix kernels read them.

torch reorders a float32 weight at every product; and on a CPU without 16-bit arithmetic it multiplies 16-bit matrices
value by value. Laid out once, a float32 weight goes to oneDNN's kernels, and a 16-bit one, as float16, to FBGEMM's,
which widen it in registers: activations and sums are float32. Milliseconds for 768 x 2,048 on two such cores, as torch
has it and laid out: float32 1 row 0.52 and 0.28, 16 rows 0.81 and 0.51; bfloat16 1 row 0.12 and 0.11, 16 rows 1.76
and 0.39, 80 rows 10.3 and 2.1.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

_SIBLINGS = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))
"""Layers of one block that all get the same rows, one after the other, in the LLaMA of transformers."""


class PackedLinear(nn.Module):
    """A linear layer with its weight laid out anew; the weight it was made from is let go.

    A bfloat16 weight under 6e-5 is rounded to the nearest float16, at most 3e-8 away; any other is kept exactly.
    """

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self._product = _product([linear])

    def forward(self, x: Tensor) -> Tensor:
        """[..., in] to [..., out], float32."""
        return self._product(x.float())


class _Siblings:
    """Layers that are given the same rows, as one product: computed when the first is asked, kept for the others."""

    def __init__(self, linears: Sequence[nn.Linear]) -> None:
        self._sizes = [linear.out_features for linear in linears]
        self._product = _product(linears)
        self._x: Tensor | None = None
        self._parts: tuple[Tensor, ...] = ()

    def part(self, number: int, x: Tensor) -> Tensor:
        """What layer `number` makes of the rows."""
        if number == 0 or x is not self._x:
            self._x, self._parts = x, torch.split(self._product(x.float()), self._sizes, dim=-1)
        part = self._parts[number]
        if number == len(self._sizes) - 1:
            self._x, self._parts = None, ()
        return part


class PackedSibling(nn.Module):
    """One of several linear layers that are one product."""

    def __init__(self, siblings: _Siblings, number: int) -> None:
        super().__init__()
        self._siblings, self._number = siblings, number

    def forward(self, x: Tensor) -> Tensor:
        """[..., in] to [..., out], float32; a view of the common product."""
        return self._siblings.part(self._number, x)


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
    weights = [getattr(parent, name).weight for parent, name in places]
    if not is_plain(network) or not all(weight.device.type == "cpu" and _gains(weight.dtype) for weight in weights):
        return False
    for parent in dict.fromkeys(parent for parent, _ in places):
        for names in _SIBLINGS:
            _join(parent, names)
    for parent, name in places:  # one by one, so that there are never two of more than one layer
        linear = getattr(parent, name)
        if isinstance(linear, nn.Linear):
            setattr(parent, name, PackedLinear(linear))
    return True


def _join(parent: nn.Module, names: tuple[str, ...]) -> None:
    """Make one product of these layers, where the parent has them all and they take the same rows."""
    linears = [child for name in names if isinstance(child := getattr(parent, name, None), nn.Linear)]
    if len(linears) < len(names) or len({(each.in_features, each.bias is None) for each in linears}) > 1:
        return
    siblings = _Siblings(linears)
    for number, name in enumerate(names):
        setattr(parent, name, PackedSibling(siblings, number))


def is_plain(network: nn.Module) -> bool:
    """Whether it has linear layers, and none is quantised or only looks like one."""
    linears = [module for module in network.modules() if isinstance(module, nn.Linear)]
    return bool(linears) and all(type(each) is nn.Linear and type(each.weight.data) is Tensor for each in linears)


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


def _product(linears: Sequence[nn.Linear]) -> Callable[[Tensor], Tensor]:
    """The product with the weights of all, one below the other."""
    with torch.no_grad():
        first = linears[0]
        weight = first.weight if len(linears) == 1 else torch.cat([linear.weight for linear in linears])
        bias = None if first.bias is None else torch.cat([linear.bias for linear in linears]).float()
        return (_float32 if weight.dtype == torch.float32 else _float16)(weight.detach(), bias)


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

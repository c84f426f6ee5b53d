"""Packed linear layers against plain ones."""

import gc
import weakref

import pytest
import torch
from torch import nn

from model.engine.packed_linear import PackedLinear, PackedSibling, pack_linears

ROWS = (1, 2, 3, 16, 80)


def _linear(dtype: torch.dtype, *, bias: bool = True) -> nn.Linear:
    torch.manual_seed(3)
    return nn.Linear(96, 200, bias=bias).to(dtype)


def _needs(dtype: torch.dtype) -> None:
    if not pack_linears(nn.Sequential(_linear(dtype))):
        pytest.skip(f"This CPU, or this build of torch, does not gain by packing {dtype}.")


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@torch.inference_mode()
def test_the_product_is_the_plain_one_in_float32(dtype: torch.dtype, bias: bool) -> None:
    _needs(dtype)
    linear = _linear(dtype, bias=bias)
    exact = nn.Linear(96, 200, bias=bias)
    exact.load_state_dict(linear.state_dict())
    packed = PackedLinear(linear)
    for num_rows in ROWS:
        x = torch.randn(1, num_rows, 96)
        out = packed(x)
        assert out.dtype == torch.float32
        torch.testing.assert_close(out, exact(x), rtol=0, atol=2e-6)


@torch.inference_mode()
def test_the_smallest_bfloat16_weights_are_off_by_float16s_rounding_at_most() -> None:
    _needs(torch.bfloat16)
    linear = nn.Linear(64, 64, bias=False).bfloat16()
    linear.weight.copy_(torch.logspace(-9, 0, 64 * 64).reshape(64, 64))
    off = PackedLinear(linear)(torch.eye(64)).T - linear.weight.float()
    assert 0 < off.abs().max() <= 2**-25


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_weight_it_was_made_from_is_let_go(dtype: torch.dtype) -> None:
    network = nn.Sequential(_linear(dtype), nn.ReLU())
    weight = weakref.ref(network[0].weight)
    if not pack_linears(network):
        pytest.skip("This CPU does not gain by packing.")
    gc.collect()
    assert weight() is None
    assert isinstance(network[0], PackedLinear)
    assert not list(network.parameters())


class _Other(nn.Linear):
    """Only looks like a linear layer."""


def test_a_network_with_any_other_kind_of_linear_layer_stays_as_it_is() -> None:
    network = nn.Sequential(nn.Linear(8, 8), _Other(8, 8))
    assert not pack_linears(network)
    assert type(network[0]) is nn.Linear


def test_a_dtype_without_a_kernel_stays_as_it_is() -> None:
    network = nn.Sequential(nn.Linear(8, 8).double())
    assert not pack_linears(network)
    assert type(network[0]) is nn.Linear


class _Block(nn.Module):
    """Two layers that get the same rows, as in the MLP of a LLaMA, and one that does not."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(4)
        self.gate_proj, self.up_proj = nn.Linear(32, 48), nn.Linear(32, 48)
        self.down_proj = nn.Linear(48, 32)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.down_proj(nn.functional.silu(self.gate_proj(x)) * self.up_proj(x))
        return out


@torch.inference_mode()
def test_layers_that_get_the_same_rows_are_one_product_with_the_same_results() -> None:
    plain, packed = _Block(), _Block()
    if not pack_linears(packed):
        pytest.skip("This CPU does not gain by packing.")
    assert isinstance(packed.gate_proj, PackedSibling) and isinstance(packed.down_proj, PackedLinear)
    for num_rows in ROWS:
        x = torch.randn(num_rows, 32)
        torch.testing.assert_close(packed(x), plain(x), rtol=0, atol=1e-6)


@torch.inference_mode()
def test_a_sibling_asked_alone_or_with_other_rows_still_tells_of_its_own() -> None:
    plain, packed = _Block(), _Block()
    if not pack_linears(packed):
        pytest.skip("This CPU does not gain by packing.")
    x, y = torch.randn(3, 32), torch.randn(3, 32)
    packed.gate_proj(x)
    torch.testing.assert_close(packed.up_proj(y), plain.up_proj(y), rtol=0, atol=1e-6)
    x += 1  # the same tensor with other rows in it
    torch.testing.assert_close(packed.gate_proj(x), plain.gate_proj(x), rtol=0, atol=1e-6)

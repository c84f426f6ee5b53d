"""Packed layers give the results of plain ones."""

import copy
import gc
import weakref

import pytest
import torch
from torch import nn
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaAttention, LlamaMLP

from model.engine.attention import IMPLEMENTATION, Rows, make_plan, register
from model.engine.kv_cache import KVCache
from model.engine.packed_linear import PackedAttention, PackedLinear, PackedMLP, pack_linears, project_values

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
def test_the_error_of_the_smallest_bfloat16_weights_is_at_most_the_rounding_of_float16() -> None:
    _needs(torch.bfloat16)
    linear = nn.Linear(64, 64, bias=False).bfloat16()
    linear.weight.copy_(torch.logspace(-9, 0, 64 * 64).reshape(64, 64))
    off = PackedLinear(linear)(torch.eye(64)).T - linear.weight.float()
    assert 0 < off.abs().max() <= 2**-25


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_weight_of_the_plain_layer_is_freed(dtype: torch.dtype) -> None:
    network = nn.Sequential(_linear(dtype), nn.ReLU())
    weight = weakref.ref(network[0].weight)
    if not pack_linears(network):
        pytest.skip("This CPU does not gain by packing.")
    gc.collect()
    assert weight() is None
    assert isinstance(network[0], PackedLinear)
    assert not list(network.parameters())


class _Other(nn.Linear):
    """A subclass, as quantised layers are."""


def test_a_network_with_another_kind_of_linear_layer_is_not_changed() -> None:
    network = nn.Sequential(nn.Linear(8, 8), _Other(8, 8))
    assert not pack_linears(network)
    assert type(network[0]) is nn.Linear


def test_a_dtype_without_a_kernel_is_not_changed() -> None:
    network = nn.Sequential(nn.Linear(8, 8).double())
    assert not pack_linears(network)
    assert type(network[0]) is nn.Linear


CONFIG = LlamaConfig(
    hidden_size=32, intermediate_size=48, num_attention_heads=4, num_key_value_heads=2, num_hidden_layers=1
)


def _pack(layer: nn.Module) -> nn.Module:
    """The packed layer that takes the place of this one in a network."""
    network = nn.Sequential(layer)
    if not pack_linears(network):
        pytest.skip("This CPU does not gain by packing.")
    return network[0]


@pytest.mark.parametrize("bias", [False, True])
@torch.inference_mode()
def test_an_mlp_with_gate_and_up_in_one_product_has_the_same_results(bias: bool) -> None:
    torch.manual_seed(4)
    plain = LlamaMLP(LlamaConfig(**{**CONFIG.to_dict(), "mlp_bias": bias}))
    packed = _pack(copy.deepcopy(plain))
    assert isinstance(packed, PackedMLP)
    for num_rows in ROWS:
        x = torch.randn(num_rows, 32)
        torch.testing.assert_close(packed(x), plain(x), rtol=0, atol=1e-6)


@pytest.mark.parametrize("bias", [False, True])
@torch.inference_mode()
def test_attention_with_query_key_and_value_in_one_product_has_the_same_results(bias: bool) -> None:
    torch.manual_seed(4)
    register()
    config = LlamaConfig(**{**CONFIG.to_dict(), "attention_bias": bias})
    config._attn_implementation = IMPLEMENTATION
    plain = LlamaAttention(config, layer_idx=0)
    packed = _pack(copy.deepcopy(plain))
    assert isinstance(packed, PackedAttention)
    for num_rows in ROWS:
        cache = KVCache(config, num_blocks=5, block_size=16, dtype=torch.float32, device=torch.device("cpu"))
        rows = Rows(first=0, num_rows=num_rows, start=0, blocks=range(5))
        plan = make_plan([rows], cache, block_size=16, device=torch.device("cpu"))
        x, angles = torch.randn(1, num_rows, 32), torch.rand(1, num_rows, 8)
        step = {"hidden_states": x, "position_embeddings": (angles.cos(), angles.sin()), "plan": plan}
        torch.testing.assert_close(packed(**step)[0], plain(**step)[0], rtol=0, atol=1e-6)


@torch.inference_mode()
def test_values_are_projected_by_packed_attention_as_by_plain_one_also_with_a_bias_on_queries_alone() -> None:
    torch.manual_seed(4)
    plain = LlamaAttention(CONFIG, layer_idx=0)
    plain.q_proj = nn.Linear(plain.q_proj.in_features, plain.q_proj.out_features)
    packed, x = _pack(copy.deepcopy(plain)), torch.randn(2, 32)
    assert isinstance(packed, PackedAttention)
    torch.testing.assert_close(project_values(packed, x), project_values(plain, x), rtol=0, atol=1e-6)
    torch.testing.assert_close(packed.qkv_proj(x)[0], plain.q_proj(x), rtol=0, atol=1e-6)
    torch.testing.assert_close(packed.qkv_proj(x)[1], plain.k_proj(x), rtol=0, atol=1e-6)


def test_a_layer_with_an_adapter_is_not_fused() -> None:
    layer = LlamaMLP(CONFIG)
    layer.up_proj = nn.Sequential(nn.Linear(32, 8), nn.Linear(8, 48))
    assert type(_pack(layer)) is LlamaMLP
    assert isinstance(layer.gate_proj, PackedLinear) and isinstance(layer.up_proj[0], PackedLinear)


@torch.inference_mode()
def test_an_mlp_that_two_layers_share_is_packed_once_and_stays_shared() -> None:
    config = LlamaConfig(hidden_size=96, intermediate_size=200)
    torch.manual_seed(3)
    shared = LlamaMLP(config)
    first, second = nn.ModuleDict({"mlp": shared}), nn.ModuleDict({"mlp": shared, "head": nn.Linear(96, 8)})
    weight = weakref.ref(shared.gate_proj.weight)
    x = torch.randn(1, 3, 96)
    expected = shared(x)
    del shared
    if not pack_linears(nn.ModuleList([first, second])):
        pytest.skip("This CPU does not gain by packing.")
    gc.collect()
    assert weight() is None
    assert isinstance(first["mlp"], PackedMLP)
    assert first["mlp"] is second["mlp"]
    torch.testing.assert_close(first["mlp"](x), expected, rtol=0, atol=2e-6)

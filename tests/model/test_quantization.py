"""Quantising LLaMA's weights."""

import sys
import weakref

import pytest
import torch
from torch import nn

from model.families import load_family
from model.families.videochat.family import value_counts
from model.memory_estimate import estimate_memory
from model.quantization import Quantization, linear_layers, quantize
from model.weights import WeightsError
from tests.model.engine.small_llama import small_llama

GIB = 1024**3
LIBRARIES = {"int8": "torchao", "int4": "bitsandbytes"}


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize(("kind", "noise"), [("int8", 0.05), ("int4", 0.4)])
def test_logits_change_by_little_more_than_the_rounding(kind: Quantization, noise: float) -> None:
    pytest.importorskip(LIBRARIES[kind])
    network = small_llama().eval()
    ids = torch.tensor([[1, 5, 9, 12]])
    with torch.no_grad():
        exact = network(ids).logits
        quantize(network, kind, device="cpu")
        logits = network(ids).logits
    assert not torch.equal(logits, exact)
    assert (logits - exact).norm() < noise * exact.norm()


@pytest.mark.filterwarnings("default")
def test_a_replaced_layer_is_freed() -> None:
    pytest.importorskip("bitsandbytes")
    network, left = small_llama().eval(), list[int]()
    layers = linear_layers(network)
    for layer in layers:
        weakref.finalize(layer.weight, lambda: left.append(sum(map(is_plain, network.modules()))))
    num_layers = len(layers)
    del layer, layers
    quantize(network, "int4", device="cpu")
    assert left == list(range(num_layers, 0, -1)), "the head stays"


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("kind", ["int8", "int4"])
def test_an_mlp_that_all_layers_share_is_quantised_once_and_stays_shared(kind: Quantization) -> None:
    pytest.importorskip(LIBRARIES[kind])
    network = load_family("mobillama", quantization=kind).language_model
    first, *others = (layer.mlp for layer in network.model.layers)
    assert all(mlp is first for mlp in others)
    plain = load_family("mobillama").language_model
    assert len(linear_layers(plain)) == 4 * plain.config.num_hidden_layers + 3
    ids = torch.tensor([[1, 5, 9, 12]])
    with torch.no_grad():
        assert 0 < (network(ids).logits - plain(ids).logits).norm() < 0.5 * plain(ids).logits.norm()


def is_plain(module: nn.Module) -> bool:
    return type(module) is nn.Linear


@pytest.mark.parametrize("kind", ["int8", "int4"])
def test_without_the_library_the_error_says_what_to_install(
    kind: Quantization, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = LIBRARIES[kind]
    for name in [name for name in sys.modules if name.partition(".")[0] == library]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(WeightsError, match=rf"need {library}, which is not installed: pip install {library}\."):
        quantize(small_llama(), kind, device="cpu")


def test_embeddings_and_head_are_not_quantised() -> None:
    network = small_llama()
    layers = linear_layers(network)
    assert len(layers) == 7 * network.config.num_hidden_layers
    assert network.lm_head not in layers


@pytest.mark.parametrize(("kind", "gib"), [("int8", 9.5), ("int4", 7.0)])
def test_the_published_7b_fits_where_the_original_does_not(kind: Quantization, gib: float) -> None:
    assert estimate_memory(value_counts("7b"), torch.float16, kind).weight_bytes / GIB < gib

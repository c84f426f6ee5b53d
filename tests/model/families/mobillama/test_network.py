"""The MobiLlama network: one MLP for all layers, or one for each."""

from dataclasses import replace

import pytest
import torch

from model.families.mobillama.network import MobiLlamaConfig, MobiLlamaNetwork
from model.families.mobillama.published import PUBLISHED_05B, PUBLISHED_08B, PUBLISHED_1B
from model.family import blank
from model.memory_estimate import num_parameters
from model.networks.llama import DecoderConfig

SMALL = MobiLlamaConfig(
    decoder=DecoderConfig(vocab_size=40, width=12, depth=3, num_heads=2, mlp_width=24, max_positions=128),
    shared_mlp=True,
)
IDS = torch.tensor([[1, 5, 9, 12]])


def small(*, shared_mlp: bool) -> MobiLlamaNetwork:
    torch.manual_seed(2)
    return MobiLlamaNetwork(replace(SMALL, shared_mlp=shared_mlp)).eval()


@pytest.mark.parametrize(
    ("config", "millions"), [(PUBLISHED_05B, 534.9), (PUBLISHED_08B, 819.3), (PUBLISHED_1B, 1261.5)]
)
def test_the_published_sizes_have_the_published_numbers_of_parameters(config: MobiLlamaConfig, millions: float) -> None:
    assert num_parameters(blank(MobiLlamaNetwork, config)) / 1e6 == pytest.approx(millions, abs=0.05)


def test_a_shared_mlp_is_one_module_and_has_every_layer_s_name() -> None:
    network = small(shared_mlp=True)
    first, *others = (layer.mlp for layer in network.decoder.model.layers)
    assert all(mlp is first for mlp in others)
    names = [name for name in network.state_dict() if "up_proj" in name]
    assert names == [f"language_model.model.layers.{number}.mlp.up_proj.weight" for number in range(3)]


@torch.no_grad()
def test_a_shared_mlp_computes_what_equal_ones_compute() -> None:
    shared, separate = small(shared_mlp=True), small(shared_mlp=False)
    assert not torch.equal(separate.decoder(IDS).logits, shared.decoder(IDS).logits)
    separate.load_state_dict(shared.state_dict())
    assert torch.equal(separate.decoder(IDS).logits, shared.decoder(IDS).logits)
    mlp = 3 * SMALL.decoder.width * SMALL.decoder.mlp_width
    assert num_parameters(separate) - num_parameters(shared) == 2 * mlp


def test_an_unknown_kind_of_prompt_is_refused() -> None:
    with pytest.raises(ValueError, match="prompt is 'alpaca', not one of one-shot, plain"):
        MobiLlamaConfig.from_json(SMALL.to_json() | {"prompt": "alpaca"})

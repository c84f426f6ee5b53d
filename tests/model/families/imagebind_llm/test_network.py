"""The network of ImageBind-LLM: batches, merged low-rank updates, and the order of rows for rotary embedding."""

import pytest
import torch
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from model.families.imagebind_llm.family import TINY
from model.families.imagebind_llm.low_rank import MODULES, LayerAdapter, half_split
from model.families.imagebind_llm.network import ImageBindLLMNetwork, in_windows
from model.weights import seeded


@pytest.fixture
def network() -> ImageBindLLMNetwork:
    made = ImageBindLLMNetwork(TINY)
    made.load_state_dict(seeded(made, seed=3))
    return made.eval()


@torch.no_grad()
def test_two_clips_in_one_batch_give_what_each_gives_alone(network: ImageBindLLMNetwork) -> None:
    frames, mel = torch.randn(2, 30, 3, 28, 28), torch.randn(2, 3, 1, 128, 204)
    together = network.encode(frames, mel)
    assert {name: part.shape for name, part in together.items()} == {"video": (2, 1, 32), "audio": (2, 1, 32)}
    for number in range(2):
        alone = network.encode(frames[number : number + 1], mel[number : number + 1])
        for name, part in alone.items():
            torch.testing.assert_close(part[0], together[name][number])
    torch.testing.assert_close(network.encode(frames)["video"], together["video"])
    assert network.encode(frames).keys() == {"video"}


def test_squares_are_arranged_by_windows_with_the_crops_inside() -> None:
    number = torch.arange(30.0).view(1, 30, 1, 1, 1).expand(-1, -1, 3, 2, 2)  # frame x 3 + crop
    windows = in_windows(number, num_frames=2)
    assert windows.shape == (1, 15, 3, 2, 2, 2)
    assert windows[0, :4, 0, :, 0, 0].tolist() == [[0, 3], [1, 4], [2, 5], [6, 9]]


@torch.no_grad()
def test_merging_adds_every_low_rank_update_and_keeps_that_of_values(network: ImageBindLLMNetwork) -> None:
    before = {name: parameter.clone() for name, parameter in network.named_parameters()}
    network.merge()
    for number, layer in enumerate(network.language_model.model.layers):
        for name, path in MODULES.items():
            l1, l2 = (before[f"adapters.{number}.lora.{name}.{each}.weight"] for each in ("l1", "l2"))
            expected = before[f"language_model.model.layers.{number}.{path}.weight"] + l2 @ l1
            if name in {"wq", "wk"}:
                expected = half_split(expected, TINY.decoder.num_heads)
            torch.testing.assert_close(layer.get_submodule(path).weight, expected)
        adapter = network.adapters[number]
        assert isinstance(adapter, LayerAdapter)
        assert set(adapter.lora) == {"wv"}


def test_rows_in_halves_are_rotated_as_neighbours_are_in_the_original() -> None:
    heads, size = 2, 6
    queries = torch.randn(heads * size)
    angles = torch.tensor([0.3, 1.1, 2.0])
    pairs = torch.view_as_complex(queries.view(heads, size // 2, 2))
    original = torch.view_as_real(pairs * torch.polar(torch.ones(3), angles)).flatten()
    both = torch.cat((angles, angles)).view(1, 1, size)
    rows = half_split(queries, heads).view(1, heads, 1, size)
    ours, _ = apply_rotary_pos_emb(rows, rows, both.cos(), both.sin())
    torch.testing.assert_close(ours.flatten(), half_split(original, heads))

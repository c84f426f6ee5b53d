"""The recipe trains a model that can be loaded, and an interrupted run gives the same result."""

from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from model.families import load_family
from training import corpus
from training.loop import Muon, StageSchedule, learn
from training.train import Recipe, train


def test_training_gives_a_model_that_can_be_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corpus, "SHARD", 4)
    short = StageSchedule(steps=2, batch=2, learning_rate=1e-3, save_every=1)
    stages = {field.name: short for field in fields(Recipe) if field.name not in ("seed", "clips")}
    recipe = Recipe(seed=3, clips=8, **stages)
    train(recipe, tmp_path / "work", tmp_path / "out")
    family = load_family("videochat", checkpoint=tmp_path / "out")
    assert family.parts[0].shape == (96, 128)
    assert family.default_sampling.temperature == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.model",
    ]
    # All stages are finished, so running it again only writes the same bytes again.
    first = (tmp_path / "out" / "model.safetensors").read_bytes()
    train(recipe, tmp_path / "work", tmp_path / "out")
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == first


class Interrupted(Exception):
    pass


def run(folder: Path, *, stop_at: int | None = None) -> dict[str, Tensor]:
    """Train a small network for six steps, or stop at `stop_at`."""
    folder.mkdir(exist_ok=True)
    torch.manual_seed(0)
    network = nn.ModuleDict({"layers": nn.ModuleList([nn.Linear(8, 8)]), "head": nn.Linear(8, 2)})

    def step(number: int) -> tuple[Tensor, dict[str, float]]:
        if number == stop_at:
            raise Interrupted
        x = torch.randn(16, 8, generator=torch.Generator().manual_seed(number))
        out = network["head"](network.get_submodule("layers.0")(x).relu())
        return (out - x[:, :2]).square().mean(), {}

    learn(
        "stage",
        network,
        step,
        StageSchedule(steps=6, batch=16, learning_rate=1e-2, warm_up=1, save_every=2),
        folder,
    )
    return network.state_dict()


def test_a_resumed_stage_gives_the_same_weights(tmp_path: Path) -> None:
    whole = run(tmp_path / "whole")
    with pytest.raises(Interrupted):
        run(tmp_path / "stopped", stop_at=5)
    resumed = run(tmp_path / "stopped")
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_an_update_of_muon_is_nearly_orthogonal_for_any_gradient_size() -> None:
    weight = nn.Parameter(torch.zeros(6, 10))
    weight.grad = torch.randn(6, 10, generator=torch.Generator().manual_seed(1)) * 1e-4
    Muon([weight], lr=1.0, weight_decay=0.0).step()
    singular = torch.linalg.svdvals(weight.detach()) / (0.2 * 10**0.5)
    assert 0.6 < singular.min() <= singular.max() < 1.3


def test_the_recipe_has_a_whole_number_of_shards() -> None:
    assert Recipe().clips % corpus.SHARD == 0
    assert replace(Recipe(), clips=500).clips == 500

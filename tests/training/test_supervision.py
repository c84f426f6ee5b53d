"""Labels of patches, frames, tokens and clips match the scene."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from model.families.videochat.network import VideoChatNetwork
from tests.training.some_scenes import LATE, SCENE, THING
from training.corpus import label
from training.scenes import COLOUR_NAMES, LIVES, MOTIONS, SHAPES
from training.supervision import (
    NUM_COLOURS,
    UNCOUNTED,
    Heads,
    edge_directions,
    fast_convolutions,
    first_event,
    look,
    patch_owner,
    recorded_outputs,
    tell,
    understand,
)
from training.train import fresh, sizes

LABELS = label([SCENE, None])


def test_labels_describe_a_scene_and_are_empty_for_a_distractor() -> None:
    assert LABELS.colour.tolist() == [[COLOUR_NAMES.index("blue"), COLOUR_NAMES.index("red"), -1], [-1, -1, -1]]
    assert LABELS.shape[0, :2].tolist() == [SHAPES.index("star"), SHAPES.index("circle")]
    assert LABELS.motion[0, :2].tolist() == [MOTIONS.index("still"), MOTIONS.index("left")]
    assert LABELS.life[0, :2].tolist() == [LIVES.index("appears"), LIVES.index("always")]
    assert LABELS.event[0].tolist() == [4, -1, -1]
    assert LABELS.visible[0].tolist() == [[False] * 4 + [True] * 4, [True] * 8, [False] * 8]
    assert LABELS.centre[0, 1, 0, 0] > LABELS.centre[0, 1, 7, 0]
    assert not LABELS.visible[1].any()


def test_a_patch_belongs_to_the_thing_it_shows() -> None:
    owner, offset = patch_owner(LABELS, 8)
    assert owner.shape == (2, 8, 64)
    assert (owner[1] == -1).all()
    first, last = owner[0, 0].reshape(8, 8), owner[0, 7].reshape(8, 8)
    assert set(first.flatten().tolist()) == {-1, 1}
    assert set(last.flatten().tolist()) == {-1, 0, 1}
    # The star is three quarters down the middle, where four patches meet.
    assert last[5:7, 3:5].tolist() == [[0, 0], [0, 0]]
    assert offset[0, 7].reshape(8, 8, 2)[5, 3].tolist() == pytest.approx([0.25, 0.25])


def test_the_first_event_is_the_earliest_unless_two_are_equal() -> None:
    early = replace(THING, life="vanishes", event=0.3)
    tied = replace(THING, life="vanishes", event=0.5)
    labels = label([SCENE, replace(SCENE, things=(early, LATE)), replace(SCENE, things=(tied, LATE)), None])
    assert first_event(labels).tolist() == [
        COLOUR_NAMES.index("blue"),
        COLOUR_NAMES.index("red"),
        UNCOUNTED,
        NUM_COLOURS,
    ]


def test_edges_are_counted_by_their_direction() -> None:
    upright = torch.zeros(1, 3, 64, 64)
    upright[..., 28:] = 1  # one vertical edge, in the fourth column of patches
    bins = edge_directions(upright, 8)[0].reshape(8, 8, -1)
    assert bins[1:7, 3].sum() > 0.9 * bins[1:7, 1:7].sum()  # the pictures' own borders left out
    assert bins[4, 3].argmax() == 0
    assert edge_directions(upright.transpose(2, 3), 8)[0].reshape(8, 8, -1)[3, 4].argmax() == 4


@pytest.fixture(scope="module")
def untrained() -> tuple[VideoChatNetwork, Heads]:
    return fresh(sizes(400), 3)


def test_shifted_products_are_the_convolution_and_its_gradient(untrained: tuple[VideoChatNetwork, Heads]) -> None:
    network, _ = untrained
    convolution = next(module for module in network.modules() if isinstance(module, nn.Conv3d))
    volume = torch.randn(2, 128, 4, 5, 5, requires_grad=True)
    plain = convolution(volume)
    (slope,) = torch.autograd.grad(plain.square().sum(), volume)
    with fast_convolutions(network):
        shifted = convolution(volume)
        (fast_slope,) = torch.autograd.grad(shifted.square().sum(), volume)
    assert torch.allclose(plain, shifted, atol=1e-5)
    assert torch.allclose(slope, fast_slope, atol=1e-4)
    assert torch.equal(convolution(volume), plain)


def test_every_part_of_the_encoder_gets_a_gradient(untrained: tuple[VideoChatNetwork, Heads]) -> None:
    network, heads = untrained
    with recorded_outputs(network) as seen:
        features = network.encode(torch.randn(2, 8, 3, 64, 64))["video"]
        scores = (*understand(heads, LABELS, seen).losses.values(), *tell(heads, LABELS, features).losses.values())
        torch.autograd.backward(torch.stack(scores).sum())
        seen.clear()
        frame = replace(LABELS, centre=LABELS.centre[:, :, :1], visible=LABELS.visible[:, :, :1])
        pixels = torch.randn(2, 1, 3, 64, 64)
        network.ln_vision(network.visual_encoder(pixels))
        torch.autograd.backward(torch.stack(list(look(heads, frame, pixels, seen).losses.values())).sum())
    idle = [name for name, parameter in network.named_parameters() if parameter.grad is None]
    assert idle
    assert all(name.startswith("llama") for name in idle)
    assert all(parameter.grad is not None for parameter in heads.parameters())

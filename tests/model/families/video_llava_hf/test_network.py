"""The network of Video-LLaVA -hf: as the original's, without attention over time."""

import torch

from model.families.video_llava_hf.network import VideoLlavaHFNetwork
from model.families.video_llava_hf.published import PUBLISHED_7B
from model.memory_estimate import num_parameters
from tests.model.families.video_llava.test_network import SMALL


def test_the_published_sizes_have_the_published_numbers_of_parameters() -> None:
    with torch.device("meta"):
        network = VideoLlavaHFNetwork(PUBLISHED_7B)
    unused = 12_596_224 + 2_048  # the tower's last layer, and the norm behind it
    assert num_parameters(network.video_tower) == 303_179_776 - unused
    assert num_parameters(network.mm_projector) == 20_979_712
    assert num_parameters(network.language_model) == 6_738_415_616 + 64 * 2 * 4096  # LLaMA, and 64 rows more
    assert PUBLISHED_7B.parts[0].shape == (2056, 1024)


@torch.no_grad()
def test_a_frame_does_not_depend_on_the_other_frames() -> None:
    torch.manual_seed(2)
    network = VideoLlavaHFNetwork(SMALL)
    clips = torch.randn(1, 2, 3, 8, 8)
    features = network.encode(clips)["video"]
    assert features.shape == (1, 2 * 5, 16)
    clips[0, 1] = -clips[0, 1]
    changed = network.encode(clips)["video"]
    torch.testing.assert_close(changed[0, :5], features[0, :5])
    assert bool((changed[0, 5:] - features[0, 5:]).abs().amax(-1).min() > 1e-4)

"""The encoder benchmark compares both implementations and counts operations correctly."""

import json
import sys

import pytest
import torch

from benchmarks import encoder
from benchmarks.encoder import NO_DECODER, build, compare, count_flops, cut, operations, scaling
from benchmarks.plain_encoder import plain_tokens
from model.families.videochat.network import QFormerConfig, VideoChatConfig
from model.families.videochat.vision import VisionConfig

VISION = VisionConfig(image_size=12, patch_size=4, width=40, depth=3, num_heads=4, num_global_blocks=2)
CONFIG = VideoChatConfig(
    num_frames=3,
    vision=VISION,
    qformer=QFormerConfig(width=16, depth=2, num_heads=2, mlp_width=32, num_queries=2, num_extra_queries=3),
    decoder=NO_DECODER,
)
CPU = torch.device("cpu")


@torch.no_grad()
def test_the_published_arithmetic_gives_the_tokens_of_the_network() -> None:
    network = build(CONFIG, CPU)
    for parameter in network.parameters():
        parameter.add_(torch.randn_like(parameter) * 0.2)
    clips = torch.randn(2, 3, 3, 12, 12)
    expected = plain_tokens(network, clips)
    assert expected.shape == (2, VISION.num_tokens(3), 40)
    assert (network.see(clips) - expected).abs().max() <= 2e-6 * expected.abs().max()


@torch.no_grad()
@pytest.mark.parametrize("name", ["visual_encoder.gmhra.1.dpe.bias", "visual_encoder.blocks.0.attn.v_bias"])
def test_a_parameter_that_one_implementation_ignored_would_be_detected(name: str) -> None:
    network, clip = build(CONFIG, CPU), torch.randn(1, 3, 3, 12, 12)
    expected = plain_tokens(network, clip)
    network.get_parameter(name).add_(1)
    assert (network.see(clip) - expected).abs().max() > encoder.TOLERANCE * expected.abs().max()


@torch.no_grad()
def test_both_implementations_are_timed_in_pairs_and_compared() -> None:
    network, clip = build(CONFIG, CPU), torch.randn(1, 3, 3, 12, 12)
    ratio = compare(network, clip, repeats=2)
    assert 0 <= ratio.difference <= encoder.TOLERANCE
    assert ratio.plain_s > 0 and ratio.ours_s > 0 and ratio.ratio > 0


def test_flops_count_the_published_arithmetic() -> None:
    shallow, deep = (count_flops(cut(CONFIG, depth=depth), num_frames=3) for depth in (1, 2))
    tokens, width, hidden = 3 * 10, 40, VISION.mlp_width
    block = tokens * width * (4 * width + 2 * hidden) + 2 * 3 * 10 * 10 * width
    keys_and_values, rest = tokens * width * 2 * width, width * (2 * width + 2 * VISION.global_mlp_width)
    scores_and_positions = 2 * tokens * width + 27 * width * 3 * 9
    assert deep - shallow == 2 * (block + keys_and_values + rest + scores_and_positions)


@torch.no_grad()
@pytest.mark.filterwarnings("default")
def test_operations_and_batch_sizes_are_timed() -> None:
    network, clip = build(CONFIG, CPU), torch.randn(1, 3, 3, 12, 12)
    seconds = operations(lambda: network.encode(clip), CPU)
    assert seconds["aten::addmm"] > 0 and list(seconds.values()) == sorted(seconds.values(), reverse=True)
    assert scaling(network, clip, batches=(1, 2), repeats=1).keys() == {1, 2}


@pytest.mark.filterwarnings("default")
def test_the_benchmark_runs_and_ends_with_a_line_of_json(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(encoder, "PUBLISHED_7B", CONFIG)
    monkeypatch.setattr(sys, "argv", ["encoder", "--device", "cpu", "--repeats", "1", "--batches", "1"])
    assert encoder.main() == 0
    results = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert results["benchmark"] == "encoder" and results["depth"] == 3
    assert {"ratio", "float32_ms_1", "bfloat16_ms_1"} <= results.keys()

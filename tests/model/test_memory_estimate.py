"""Memory of the published sizes, compared with counts on the original's classes."""

from dataclasses import replace

import pytest
import torch

from model.families import family_module, family_names
from model.families.videochat.family import value_counts
from model.memory_estimate import MIB, estimate_memory

GIB = 1024**3


@pytest.mark.parametrize(
    ("family", "size", "gib", "kv"),
    [
        ("videochat", "7b", 14.97, 524_288),
        ("videochat", "13b", 26.66, 819_200),
        ("video-chatgpt", "7b", 13.10, 524_288),
        ("video-llava", "7b", 13.31, 524_288),
        ("video-llava-hf", "7b", 13.13, 524_288),
        ("mobillama", "05b", 1.00, 180_224),
        ("mobillama", "08b", 1.53, 225_280),
        ("mobillama", "1b", 2.35, 180_224),
    ],
)
def test_published_sizes_take_the_memory_of_the_original_in_16_bits(
    family: str, size: str, gib: float, kv: int
) -> None:
    memory = estimate_memory(family_module(family).value_counts(size), torch.float16)
    assert memory.weight_bytes / GIB == pytest.approx(gib, abs=0.005)
    assert memory.kv_bytes_per_token == kv


def test_every_parameter_belongs_to_one_module() -> None:
    modules = value_counts("7b").modules
    assert modules["visual encoder"] == 985_894_528
    assert modules["GMHRA"] == 202_340_736
    assert modules["Q-Former"] == 105_137_664
    assert modules["query tokens"] == 73_728
    assert sum(modules.values()) - modules["LLaMA"] == 1_296_599_296


def test_the_largest_batch_fits_and_one_more_does_not() -> None:
    memory = estimate_memory(value_counts("7b"), torch.bfloat16)
    fixed = memory.weight_bytes + memory.encoder_bytes_per_clip
    conversation = 1_170 * memory.kv_bytes_per_token
    assert conversation == 585 * MIB
    assert memory.largest_batch(fixed + 3 * conversation, num_tokens=1_170) == 3
    assert memory.largest_batch(fixed + 3 * conversation - 1, num_tokens=1_170) == 2
    assert memory.largest_batch(0, num_tokens=1_170) == 0
    with_conditions = replace(memory, condition_bytes=MIB)
    assert with_conditions.largest_batch(fixed + 3 * conversation, num_tokens=1_170) == 2
    assert with_conditions.largest_batch(fixed + 3 * (conversation + MIB), num_tokens=1_170) == 3


@pytest.mark.parametrize("name", family_names())
def test_values_of_every_published_size_are_counted(name: str) -> None:
    family = family_module(name)
    for size, config in family.SIZES.items():
        assert family.value_counts(size).max_model_len == config.decoder.max_positions


def test_an_mlp_that_all_layers_share_is_counted_once() -> None:
    shared, separate = (family_module("mobillama").value_counts(size) for size in ("05b", "1b"))
    mlp = 3 * 2048 * 5632
    assert shared.modules["LLaMA"] == 534_865_920
    assert separate.modules["LLaMA"] - shared.modules["LLaMA"] == 21 * mlp
    assert (len(shared.linear_shapes), len(separate.linear_shapes)) == (22 * 4 + 3, 22 * 7)


def test_a_model_without_an_encoder_needs_no_memory_for_clips() -> None:
    memory = estimate_memory(family_module("mobillama").value_counts("05b"), torch.float16)
    assert memory.encoder_bytes_per_clip == 0
    assert memory.largest_batch(memory.weight_bytes + 10 * memory.kv_bytes_per_token, num_tokens=5) == 2

"""Several processes on one device together use no more memory than one process would."""

import pytest
import torch

from model.engine.config import EngineConfig
from model.engine.kv_cache import bytes_per_block, free_bytes
from model.engine.model_runner import num_fitting_blocks
from model.families import load_family
from model.memory import left_of_share, within_share

GB = 10**9


def test_a_process_alone_on_a_device_leaves_the_choice_to_the_engine() -> None:
    config = EngineConfig()
    assert within_share(config, load_family("videochat").language_model, share=1.0) is config


def test_a_share_on_the_cpu_is_of_free_memory() -> None:
    language_model = load_family("videochat").language_model
    block = bytes_per_block(language_model.config, block_size=16, dtype=language_model.dtype)
    vast = EngineConfig(max_num_seqs=1 << 20, max_num_batched_tokens=1 << 20)
    free = free_bytes(language_model.device)
    quarter = within_share(vast, language_model, share=0.25).num_blocks * block
    assert quarter == pytest.approx(free / 4, rel=0.1)
    few = EngineConfig(max_num_seqs=2, max_model_len=64)
    assert within_share(few, language_model, share=0.5).num_blocks == few.max_useful_blocks, "no more than is of use"


def test_the_conditions_of_all_sequences_are_left_room_for() -> None:
    llama = load_family("videochat").language_model.config
    config = EngineConfig(max_num_seqs=7, condition_shapes={"added": (64, 2)})
    block = bytes_per_block(llama, block_size=16, dtype=torch.float16)
    table = 8 * 128 * 2

    def num_blocks(budget: int) -> int:
        return num_fitting_blocks(budget, config, llama, dtype=torch.float16)

    assert (num_blocks(3 * block + table), num_blocks(3 * block + table - 1), num_blocks(table - 1)) == (3, 2, 0)


def test_two_processes_on_a_gpu_get_equal_shares_in_any_order_and_after_a_restart() -> None:
    total, weights = 80 * GB, 14 * GB
    first = left_of_share(free=total - weights, total=total, own=weights, share=0.5)
    assert first == 22 * GB
    second = left_of_share(free=total - 2 * weights - first, total=total, own=weights, share=0.5)
    assert second == first
    assert 2 * (weights + first) <= 0.9 * total
    again = left_of_share(free=total - 2 * weights - second, total=total, own=weights, share=0.5)
    assert again == first


def test_memory_that_other_processes_use_is_not_counted_as_free() -> None:
    assert left_of_share(free=3 * GB, total=80 * GB, own=14 * GB, share=0.5) == 3 * GB


def test_a_share_too_small_for_the_longest_sequence_is_refused() -> None:
    language_model = load_family("videochat").language_model
    with pytest.raises(ValueError, match="takes 64 blocks, but there are"):
        within_share(EngineConfig(max_model_len=1024), language_model, share=1e-9)

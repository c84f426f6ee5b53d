"""Keys and values are read from the slots they were written to; a run of slots is read without a copy."""

import torch
from transformers import LlamaConfig

from model.engine.kv_cache import KVCache, bytes_per_block, free_bytes

CONFIG = LlamaConfig(num_hidden_layers=2, num_attention_heads=3, num_key_value_heads=3, hidden_size=12, head_dim=4)


def cache() -> KVCache:
    return KVCache(CONFIG, num_blocks=6, block_size=4, dtype=torch.float32, device=torch.device("cpu"))


def test_keys_and_values_are_read_from_their_slots() -> None:
    written = torch.randn(2, 2, 3, 5, 4, generator=torch.Generator().manual_seed(0))  # keys and values, by layer
    blocks = cache()
    slots = torch.tensor([9, 10, 11, 20, 2])
    for layer in range(2):
        blocks.write(layer, slots, *written[:, layer])
    for layer in range(2):
        keys, values = blocks.run(layer, 9, 3)
        assert torch.equal(keys, written[0, layer, :, :3])
        assert torch.equal(values, written[1, layer, :, :3])
        assert torch.equal(torch.stack(blocks.layer(layer))[:, :, slots], written[:, layer])


def test_a_run_is_a_view() -> None:
    blocks = cache()
    keys, _ = blocks.run(0, 4, 4)
    blocks.write(0, torch.tensor([5]), torch.full((3, 1, 4), 7.0), torch.zeros(3, 1, 4))
    assert (keys[:, 1] == 7).all()


def test_a_block_is_copied_in_all_layers() -> None:
    blocks = cache()
    written = torch.randn(2, 3, 4, 4)
    for layer in range(2):
        blocks.write(layer, torch.arange(8, 12), written[layer], -written[layer])
    blocks.copy_blocks([(2, 5)])
    for layer in range(2):
        keys, values = blocks.run(layer, 20, 4)
        assert torch.equal(keys, written[layer])
        assert torch.equal(values, -written[layer])


def test_bytes_per_block_is_the_size_of_the_tensors() -> None:
    blocks = cache()
    num_bytes = sum(tensor.nbytes for tensor in (blocks._keys, blocks._values))
    assert 6 * bytes_per_block(CONFIG, block_size=4, dtype=torch.float32) == num_bytes
    assert 0 < free_bytes(torch.device("cpu")) < 2**50

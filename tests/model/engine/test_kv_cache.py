"""What is written stays, as the cache grows; what is freed is gone."""

import torch

from model.engine.kv_cache import KVCache


def test_a_sequence_keeps_its_past_while_its_room_grows() -> None:
    cache = KVCache(num_layers=2, num_kv_heads=3, head_dim=4, dtype=torch.float32, device=torch.device("cpu"))
    written = torch.randn(2, 2, 3, 700, 4, generator=torch.Generator().manual_seed(0))  # keys and values, by layer
    start = 0
    for end in (1, 5, 130, 131, 400, 700):
        cache.allocate("a", end)
        for layer in range(2):
            new_keys, new_values = written[:, layer, :, start:end]
            keys, values = cache.append("a", layer, keys=new_keys, values=new_values, start=start)
            assert torch.equal(keys, written[0, layer, :, :end])
            assert torch.equal(values, written[1, layer, :, :end])
        start = end


def test_room_is_given_back() -> None:
    cache = KVCache(num_layers=1, num_kv_heads=1, head_dim=2, dtype=torch.float32, device=torch.device("cpu"))
    cache.allocate("a", 3)
    cache.allocate("b", 3)
    assert cache.num_sequences == 2
    cache.free("a")
    cache.free("never was")
    assert cache.num_sequences == 1

"""The feature cache returns exactly what was stored, or nothing; damaged values are counted and removed."""

import hashlib
import random
from collections.abc import Callable

import numpy as np
import pytest
from safetensors.numpy import save

from model.features import PackedFeatures, PartSpec, pack
from service.errors import Unavailable
from service.observability.metrics import Metrics
from service.store.connection import StoreClient
from service.store.features import FeatureCache

KEY = "features:acme:made-so:of-this"
SHAPE = (4, 6)
PARTS = (PartSpec(name="video", shape=SHAPE),)
ARRAY = np.arange(24, dtype=np.float16).reshape(SHAPE)
BLOB = pack({"video": ARRAY}, KEY, frame_indices=(1, 5), timestamps=(0.25, 1.25))
PACKED = PackedFeatures.checked(BLOB, key=KEY, parts=PARTS)


def counts(metrics: Metrics) -> dict[str, float]:
    """Queries, hits, corrupt values and errors so far."""
    names = ("queries", "hits", "corrupt", "errors")
    found = {
        name: metrics.registry.get_sample_value(f"reeltalk_feature_cache_{name}_total", {"model_name": "tiny"})
        for name in names
    }
    return {name: value for name, value in found.items() if value}


def flipped(blob: bytes) -> bytes:
    """With one bit of the last tensor value flipped."""
    return blob[:-1] + bytes([blob[-1] ^ 1])


def in_float32(_: bytes) -> bytes:
    """A valid blob with another dtype."""
    body: bytes = save({"video": ARRAY.astype(np.float32)}, metadata={"key": KEY})
    return hashlib.sha256(body).digest() + body


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "a flipped bit": flipped,
    "cut short": lambda blob: blob[:-1],
    "cut to less than a checksum": lambda blob: blob[:5],
    "empty": lambda blob: b"",
    "with a byte appended": lambda blob: blob + b"\0",
    "another key's": lambda blob: pack({"video": ARRAY}, KEY + "-other"),
    "of another shape": lambda blob: pack({"video": ARRAY.reshape(6, 4)}, KEY),
    "of another type": in_float32,
    "not a blob": lambda blob: b"hello" * 100,
}


async def test_a_stored_value_is_a_counted_hit_and_its_ttl_is_renewed(redis: StoreClient) -> None:
    metrics = Metrics()
    cache = FeatureCache(redis, ttl=100, metrics=metrics)
    await cache.put(KEY, PACKED, model="tiny")
    await redis.expire(KEY, 5)
    assert await cache.get(KEY, parts=PARTS, model="tiny") == PACKED
    assert await redis.ttl(KEY) > 90, "a hit renews the time to live"
    assert await cache.existing([KEY]) == {KEY}
    assert counts(metrics) == {"queries": 1, "hits": 1}


async def test_a_missing_value_is_a_counted_miss(redis: StoreClient) -> None:
    metrics = Metrics()
    cache = FeatureCache(redis, ttl=100, metrics=metrics)
    assert await cache.get(KEY, parts=PARTS, model="tiny") is None
    assert await cache.existing([KEY]) == set()
    assert counts(metrics) == {"queries": 1}


async def test_existing_returns_the_keys_that_have_a_value(redis: StoreClient) -> None:
    metrics = Metrics()
    cache = FeatureCache(redis, ttl=100, metrics=metrics)
    await cache.put(KEY, PACKED, model="tiny")
    assert await cache.existing([KEY, KEY + "-other"]) == {KEY}
    assert await cache.existing([]) == set()
    assert counts(metrics) == {}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
async def test_a_value_that_does_not_match_is_a_miss_and_removed(
    redis: StoreClient, damage: Callable[[bytes], bytes]
) -> None:
    metrics = Metrics()
    cache = FeatureCache(redis, ttl=100, metrics=metrics)
    await redis.set(KEY, damage(BLOB))
    assert await cache.get(KEY, parts=PARTS, model="tiny") is None
    assert counts(metrics) == {"queries": 1, "corrupt": 1}
    assert await redis.exists(KEY) == 0


def damaged(blob: bytes, rng: random.Random) -> bytes:
    """A value as no writer of this key leaves it: bits flipped, cut, padded, another model's, of another type."""
    kind = rng.randrange(5)
    if kind == 0:
        bits = bytearray(blob)
        for _ in range(rng.choice((1, 1, 2, 8, 64))):
            bits[rng.randrange(len(bits))] ^= 1 << rng.randrange(8)
        return bytes(bits) if bytes(bits) != blob else blob[:-1]
    if kind == 1:
        return blob[: rng.randrange(len(blob))]
    if kind == 2:
        return blob + rng.randbytes(rng.randint(1, 64))
    array = np.array([rng.random() for _ in range(24)]).reshape(SHAPE)
    if kind == 3:
        return pack({"video": array.astype(np.float16)}, f"features:acme:{rng.randbytes(32).hex()}:of-this")
    dtype = rng.choice((np.float32, np.float64, np.int16, np.uint16))
    body: bytes = save({"video": (array * 100).astype(dtype)}, metadata={"key": KEY})
    return hashlib.sha256(body).digest() + body


async def test_of_a_thousand_damaged_values_none_is_taken_for_features(redis: StoreClient) -> None:
    metrics, rng = Metrics(), random.Random(1)
    cache = FeatureCache(redis, ttl=100, metrics=metrics)
    for number in range(1, 1001):
        await redis.set(KEY, damaged(BLOB, rng))
        assert await cache.get(KEY, parts=PARTS, model="tiny") is None
        assert counts(metrics) == {"queries": number, "corrupt": number}
        assert await cache.existing([KEY]) == set()
    await cache.put(KEY, PACKED, model="tiny")
    assert await cache.get(KEY, parts=PARTS, model="tiny") == PACKED


async def test_erasing_succeeds_or_raises(redis: StoreClient, absent_redis: StoreClient) -> None:
    await FeatureCache(redis, ttl=100, metrics=Metrics()).put(KEY, PACKED, model="tiny")
    await FeatureCache(redis, ttl=100, metrics=Metrics()).erase([KEY])
    assert not await redis.exists(KEY)
    with pytest.raises(Unavailable):
        await FeatureCache(absent_redis, ttl=100, metrics=Metrics()).erase([KEY])


async def test_without_the_store_a_look_up_is_a_miss_and_a_write_is_dropped(absent_redis: StoreClient) -> None:
    metrics = Metrics()
    cache = FeatureCache(absent_redis, ttl=100, metrics=metrics)
    await cache.put(KEY, PACKED, model="tiny")
    assert await cache.get(KEY, parts=PARTS, model="tiny") is None
    assert await cache.existing([KEY]) == set()
    assert await cache.existing([KEY]) == set()
    assert counts(metrics) == {"queries": 1, "errors": 2}

"""The feature cache: checksummed blobs under the video's hash. A value that does not match its key is a miss."""

from collections.abc import Sequence

import structlog

from model.features import CorruptFeatures, PackedFeatures, PartSpec
from service.errors import Unavailable
from service.observability.metrics import Metrics
from service.observability.model_metrics import ModelMetrics
from service.store.connection import StoreClient

_log = structlog.get_logger(__name__)


class FeatureCache:
    """Reads and writes features. Fails open: while the store is unreachable, look-ups miss and writes are dropped."""

    def __init__(self, redis: StoreClient, *, ttl: int, metrics: Metrics) -> None:
        self._redis = redis
        self._ttl = ttl
        self._metrics = metrics

    async def get(self, key: str, *, parts: Sequence[PartSpec], model: str) -> PackedFeatures | None:
        """The features under `key`, checked; None is a miss. A corrupt value is removed and counted.

        `model` is the name of the model that needs them, for the metrics.
        """
        metrics = self._metrics.of_model(model)
        metrics.feature_cache_queries.inc()
        try:
            blob = await self._redis.getex(key, ex=self._ttl)
            if blob is None:
                return None
            assert isinstance(blob, bytes)
            packed = PackedFeatures.checked(blob, key=key, parts=parts)
        except CorruptFeatures as corrupt:
            _log.warning("feature_cache_corrupt", reason=str(corrupt))
            metrics.feature_cache_corrupt.inc()
            await self._discard(key, metrics)
            return None
        except Unavailable:
            metrics.feature_cache_errors.inc()
            return None
        metrics.feature_cache_hits.inc()
        return packed

    async def existing(self, features_keys: Sequence[str]) -> set[str]:
        """Return those keys that have a value, in one round trip; the values are not checked or counted."""
        try:
            async with self._redis.pipeline(transaction=False) as pipeline:
                for key in features_keys:
                    pipeline.exists(key)
                found = await pipeline.execute()
        except Unavailable:
            return set()
        return {key for key, exists in zip(features_keys, found, strict=True) if exists}

    async def put(self, key: str, features: PackedFeatures, *, model: str) -> None:
        """Store features under `key` for the cache's time to live."""
        try:
            await self._redis.set(key, features.blob, ex=self._ttl)
        except Unavailable:
            self._metrics.of_model(model).feature_cache_errors.inc()

    async def erase(self, features_keys: Sequence[str]) -> None:
        """Erase features.

        Raises:
            Unavailable: the store cannot be reached, and the features may still exist.
        """
        if features_keys:
            await self._redis.delete(*features_keys)

    async def _discard(self, key: str, metrics: ModelMetrics) -> None:
        try:
            await self._redis.delete(key)
        except Unavailable:
            metrics.feature_cache_errors.inc()

"""All stores of one replica, built on its connections to Redis."""

import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass

from service.observability.metrics import Metrics
from service.settings import Settings
from service.store.answers import AnswerStore
from service.store.api_keys import ApiKeyStore
from service.store.connection import StoreClient, connect
from service.store.features import FeatureCache
from service.store.idempotency import IdempotencyStore
from service.store.leases import Leases
from service.store.log_follower import LogFollower
from service.store.media import MediaStore
from service.store.partial_files import LocalPartialFiles, PartialFiles
from service.store.sessions import SessionStore
from service.store.uploads import UploadStore
from service.store.videos import VideoStore

_OWNER_CONNECTIONS = 2
"""One for the writes of all running answers, which share round trips, and one for their leases."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Stores:
    """The stores that the other folders use. Only this folder speaks Redis."""

    redis: StoreClient
    answers: AnswerStore
    api_keys: ApiKeyStore
    features: FeatureCache
    idempotency: IdempotencyStore
    leases: Leases
    media: MediaStore
    partial_files: PartialFiles
    sessions: SessionStore
    uploads: UploadStore
    videos: VideoStore
    follower: LogFollower
    """Reads the logs for `AnswerStore.follow` and `VideoStore.follow`. The caller of `build_stores` starts it."""


@contextlib.asynccontextmanager
async def open_stores(settings: Settings, *, redis_url: str, metrics: Metrics) -> AsyncIterator[Stores]:
    """Connect to Redis and build the stores; the connections close with the block."""
    async with contextlib.AsyncExitStack() as stack:
        redis = connect(redis_url, max_connections=settings.redis_max_connections)
        stack.push_async_callback(redis.aclose)
        cache = redis
        if settings.cache_redis_url is not None:
            url = settings.cache_redis_url.get_secret_value()
            cache = connect(url, max_connections=settings.redis_max_connections)
            stack.push_async_callback(cache.aclose)
        owners = connect(redis_url, max_connections=_OWNER_CONNECTIONS)
        stack.push_async_callback(owners.aclose)
        stores = build_stores(settings, redis, metrics, cache=cache, owners=owners)
        stack.push_async_callback(stores.follower.close)
        stores.follower.start()
        yield stores


def build_stores(
    settings: Settings,
    redis: StoreClient,
    metrics: Metrics,
    *,
    cache: StoreClient | None = None,
    owners: StoreClient | None = None,
) -> Stores:
    """Build the stores on `redis`, and create the media directory.

    `cache` is for the features, and `owners` for what the owners of answers write; both are `redis` by default.
    """
    media, partial_files = _open_files(settings)
    follower = LogFollower(redis)
    return Stores(
        redis=redis,
        answers=AnswerStore(redis, follower, owners=owners),
        api_keys=ApiKeyStore(redis),
        features=FeatureCache(cache or redis, ttl=settings.feature_ttl, metrics=metrics),
        idempotency=IdempotencyStore(redis, ttl=settings.idempotency_ttl),
        leases=Leases(redis, seconds=settings.lease_seconds),
        media=media,
        partial_files=partial_files,
        sessions=SessionStore(redis),
        uploads=UploadStore(redis),
        videos=VideoStore(redis, follower),
        follower=follower,
    )


def _open_files(settings: Settings) -> tuple[MediaStore, PartialFiles]:
    media: MediaStore
    partial_files: PartialFiles
    if settings.media_url is None:
        media, partial_files = MediaStore(settings.media_path), LocalPartialFiles(settings.media_path)
    else:
        from service.store.bucket import Bucket  # its client is an extra
        from service.store.bucket_media import BucketStore
        from service.store.bucket_partial_files import BucketPartialFiles

        bucket = Bucket(settings.media_url)
        media, partial_files = (
            BucketStore(settings.media_path, bucket),
            BucketPartialFiles(settings.media_path, bucket),
        )
    media.open()
    return media, partial_files

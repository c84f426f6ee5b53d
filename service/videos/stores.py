"""The stores that hold videos, their files and their features, opened as the settings say."""

from dataclasses import dataclass

from service.observability.metrics import Metrics
from service.settings import Settings
from service.store.connection import StoreClient
from service.store.features import FeatureCache
from service.store.idempotency import IdempotencyStore
from service.store.leases import Leases
from service.store.media import MediaStore
from service.store.partial_files import LocalPartialFiles, PartialFiles
from service.store.uploads import UploadStore
from service.store.videos import VideoStore


@dataclass(frozen=True, kw_only=True, slots=True)
class VideoStores:
    """All stores that the parts of `service.videos` use."""

    videos: VideoStore
    uploads: UploadStore
    features: FeatureCache
    media: MediaStore
    partial_files: PartialFiles
    leases: Leases
    idempotency: IdempotencyStore


def open_video_stores(
    settings: Settings, redis: StoreClient, metrics: Metrics, *, cache: StoreClient | None = None
) -> VideoStores:
    """Open the stores on `redis`, with the features on `cache` if there is one, and create the media directory."""
    media, partial_files = _open_files(settings)
    return VideoStores(
        videos=VideoStore(redis),
        uploads=UploadStore(redis),
        features=FeatureCache(cache or redis, ttl=settings.feature_ttl, metrics=metrics),
        media=media,
        partial_files=partial_files,
        leases=Leases(redis, seconds=settings.lease_seconds),
        idempotency=IdempotencyStore(redis, ttl=settings.idempotency_ttl),
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

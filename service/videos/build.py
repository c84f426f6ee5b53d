"""Builds the parts that receive, prepare and retain the videos of a replica."""

from collections.abc import Callable
from dataclasses import dataclass

from service.decoding.decoder import Decoder
from service.observability.metrics import Metrics
from service.settings import Settings
from service.store.stores import Stores
from service.videos.fetching import Fetcher, fetch_policy
from service.videos.ingest import Ingest
from service.videos.preparation import Preparation
from service.videos.quota import Quota
from service.videos.resumable import Resumable
from service.videos.retention import Retention
from service.workers.pool import Pool


@dataclass(frozen=True, kw_only=True, slots=True)
class Videos:
    """The parts of a replica that handle videos."""

    ingest: Ingest
    resumable: Resumable
    preparation: Preparation
    retention: Retention

    def start(self) -> None:
        """Start the background work."""
        self.retention.start()

    async def close(self) -> None:
        """Stop the background work and cancel the preparation of videos."""
        await self.retention.close()
        await self.preparation.close()


def build_videos(
    settings: Settings,
    stores: Stores,
    *,
    pool: Pool,
    decoder: Decoder,
    metrics: Metrics,
    check_open: Callable[[], None],
) -> Videos:
    """Build the parts. The caller starts and closes them, and closes them before the pool and the decoder.

    `check_open` raises an `Unavailable` when the replica accepts no new work.
    """
    preparation = Preparation(stores, pool=pool, decoder=decoder, metrics=metrics)
    quota = Quota(stores.videos, metrics)
    ingest = Ingest(
        settings,
        stores,
        preparation=preparation,
        fetcher=Fetcher(fetch_policy(settings)),
        quota=quota,
        metrics=metrics,
        check_open=check_open,
    )
    return Videos(
        ingest=ingest,
        resumable=Resumable(settings, stores, ingest=ingest, quota=quota),
        preparation=preparation,
        retention=Retention(settings, stores, metrics=metrics),
    )

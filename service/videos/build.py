"""Builds the parts that receive, prepare and retain the videos of a replica, starts them, and stops them."""

import contextlib
from collections.abc import AsyncIterator, Callable
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
from service.workers.pools import Pools


@dataclass(frozen=True, kw_only=True, slots=True)
class Videos:
    """The parts of a replica that handle videos."""

    ingest: Ingest
    resumable: Resumable
    preparation: Preparation


@contextlib.asynccontextmanager
async def run_videos(
    settings: Settings,
    stores: Stores,
    *,
    pools: Pools,
    decoder: Decoder,
    metrics: Metrics,
    check_open: Callable[[], None],
) -> AsyncIterator[Videos]:
    """Run the parts. At the end, background work stops and the preparation of videos is cancelled.

    `check_open` raises an `Unavailable` when the replica accepts no new work.
    """
    preparation = Preparation(stores, pools=pools, decoder=decoder, metrics=metrics)
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
    retention = Retention(settings, stores, metrics=metrics)
    retention.start()
    try:
        yield Videos(
            ingest=ingest,
            resumable=Resumable(settings, stores, ingest=ingest, quota=quota),
            preparation=preparation,
        )
    finally:
        await retention.close()
        await preparation.close()

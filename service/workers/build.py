"""Builds the pools of workers as the settings say, starts them, and stops them."""

import contextlib
from collections.abc import AsyncIterator

from service.observability.metrics import Metrics
from service.settings import Settings
from service.workers.pools import Pools


@contextlib.asynccontextmanager
async def run_pools(settings: Settings, *, metrics: Metrics) -> AsyncIterator[Pools]:
    """Run the workers of all models of a replica. The block is entered before they are ready."""
    pools = Pools(settings, metrics=metrics)
    pools.start()
    try:
        yield pools
    finally:
        await pools.close()

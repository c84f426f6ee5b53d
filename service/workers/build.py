"""Builds the pool of workers as the settings say, starts it, and stops it."""

import contextlib
from collections.abc import AsyncIterator
from dataclasses import replace

from service.observability.metrics import Metrics
from service.settings import Settings
from service.workers.pool import Pool
from service.workers.protocol import WorkerConfig


@contextlib.asynccontextmanager
async def run_pool(settings: Settings, *, metrics: Metrics) -> AsyncIterator[Pool]:
    """Run the workers of a replica. The block is entered before they are ready."""
    pool = Pool(
        _worker_configs(settings),
        encode_timeout=settings.encode_timeout,
        worker_timeout=settings.worker_timeout,
        metrics=metrics,
    )
    pool.start()
    try:
        yield pool
    finally:
        await pool.close()


def _worker_configs(settings: Settings) -> tuple[WorkerConfig, ...]:
    workers = settings.worker_specs
    config = WorkerConfig(
        name=settings.model,
        family=settings.family,
        checkpoint=None if settings.checkpoint is None else str(settings.checkpoint),
        workers=workers,
        number=0,
        dtype=settings.dtype,
        quantization=settings.quantize,
        threads=settings.threads_per_worker,
        max_num_seqs=settings.max_num_seqs,
        max_num_batched_tokens=settings.max_num_batched_tokens,
        cuda_graphs=settings.cuda_graphs,
        max_num_batched_frames=settings.max_num_batched_frames,
        log_level=settings.log_level,
        log_format=settings.log_format,
    )
    return tuple(replace(config, number=number) for number in range(len(workers)))

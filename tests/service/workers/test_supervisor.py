"""A worker that does not start is retried ever more rarely, and the operator learns the cause."""

import asyncio
import os
import signal

import pytest

from service.workers.supervisor import WorkersCannotStart
from tests.service.workers.pools import PATIENCE, pool_of, until_ready


async def test_a_model_that_cannot_be_loaded_is_reported_with_its_cause_and_retried() -> None:
    async with pool_of("encode,generate", checkpoint="/nowhere") as pool:
        first = set(pool.pids)
        with pytest.raises(WorkersCannotStart, match=r"/nowhere/config\.json does not exist") as cause:
            await asyncio.wait_for(pool.started(), PATIENCE)
        assert not pool.ready
        assert any(problem.endswith(f"does not start: {cause.value}") for problem in pool.problems)
        async with asyncio.timeout(PATIENCE):
            while not set(pool.pids) - first:  # noqa: ASYNC110  a pool has no event for this
                await asyncio.sleep(0.05)
        assert pool.problems, "the problem stays while the next start is under way"


async def test_a_worker_that_dies_without_a_report_is_retried_before_it_counts_as_a_problem() -> None:
    async with pool_of(1) as pool:
        pids: set[int] = set()
        async with asyncio.timeout(PATIENCE):
            while not pool.problems:
                for pid in set(pool.pids) - pids:
                    os.kill(pid, signal.SIGKILL)
                    pids.add(pid)
                await asyncio.sleep(0.02)
        assert len(pids) == 3
        assert "its process ended with status -9 while it loaded the model" in pool.problems[0]
        with pytest.raises(WorkersCannotStart):
            await pool.started()
        await until_ready(pool)
        assert pool.problems == (), "a successful start ends the problem"

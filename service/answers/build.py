"""Builds the parts of this folder for one replica, starts them, and stops them."""

import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass

from service.access.limits import ConcurrencyLimit
from service.answers.acceptance import Acceptance
from service.answers.admission import Admission
from service.answers.answers import Answers
from service.answers.completions import Completions
from service.answers.presence import Presence
from service.answers.questions import Questions
from service.answers.runner import AnswerRunner
from service.answers.sessions import Sessions
from service.answers.takeover import Takeover
from service.observability.metrics import Metrics
from service.settings import Settings
from service.store.stores import Stores
from service.videos.ingest import Ingest
from service.videos.preparation import Preparation
from service.workers.pools import Pools


@dataclass(frozen=True, kw_only=True, slots=True)
class AnswerParts:
    """What the API needs of this folder."""

    answers: Answers
    completions: Completions
    questions: Questions
    sessions: Sessions
    runner: AnswerRunner


@contextlib.asynccontextmanager
async def run_answers(
    *,
    settings: Settings,
    stores: Stores,
    pools: Pools,
    preparation: Preparation,
    ingest: Ingest,
    concurrency_limit: ConcurrencyLimit,
    admission: Admission,
    metrics: Metrics,
) -> AsyncIterator[AnswerParts]:
    """Run the answers of a replica. At the end, running ones are left to other replicas or to the next start."""
    presence = Presence(stores.answers, grace=settings.disconnect_grace)
    runner = AnswerRunner(
        settings=settings,
        jobs=pools,
        preparation=preparation,
        videos=stores.videos,
        answers=stores.answers,
        presence=presence,
        metrics=metrics,
    )
    takeover = Takeover(
        runner=runner,
        jobs=pools,
        admission=admission,
        videos=stores.videos,
        sessions=stores.sessions,
        answers=stores.answers,
        lease_seconds=settings.lease_seconds,
        answer_timeout=settings.answer_timeout,
        metrics=metrics,
    )
    answers = Answers(
        runner=runner,
        takeover=takeover,
        presence=presence,
        admission=admission,
        answers=stores.answers,
        grace=settings.disconnect_grace,
    )
    acceptance = Acceptance(pools=pools, preparation=preparation, admission=admission)
    sessions = Sessions(
        acceptance=acceptance,
        runner=runner,
        sessions=stores.sessions,
        videos=stores.videos,
        leases=stores.leases,
        idempotency=stores.idempotency,
    )
    questions = Questions(
        admission=admission,
        acceptance=acceptance,
        runner=runner,
        concurrency_limit=concurrency_limit,
        sessions=stores.sessions,
        videos=stores.videos,
        answers=stores.answers,
        idempotency=stores.idempotency,
        lease_seconds=settings.lease_seconds,
    )
    completions = Completions(
        settings=settings,
        admission=admission,
        acceptance=acceptance,
        concurrency_limit=concurrency_limit,
        pools=pools,
        preparation=preparation,
        ingest=ingest,
        videos=stores.videos,
        metrics=metrics,
    )
    runner.start()
    takeover.start()
    try:
        yield AnswerParts(
            answers=answers, completions=completions, questions=questions, sessions=sessions, runner=runner
        )
    finally:
        await answers.close()

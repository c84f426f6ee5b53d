"""Answers at several replicas: who reads them, who owns them, and what happens when a reader or an owner leaves."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager

import pytest

from service.answers.admission import Admission
from service.answers.answer import RunningAnswer
from service.answers.answers import Answers
from service.answers.presence import Presence
from service.answers.runner import AnswerRunner
from service.answers.takeover import Takeover
from service.observability.metrics import Metrics
from service.settings import Settings
from service.store import keys
from service.store.answers import AnswerStore, AnswerWrite, OwnerVerdict
from service.store.connection import StoreClient
from service.store.event_log import LogEvent
from service.store.leases import Leases
from service.store.log_follower import LogFollower
from service.store.records import AnswerRecord
from service.store.sessions import SessionStore
from service.store.videos import VideoStore
from service.workers.protocol import Delta, Generate, Refused
from tests.service.answers.conversations import PARAMS, TENANT, accept, answer_record, delta, running_answer


class Jobs:
    """Jobs whose output the test provides."""

    def __init__(self, *models: str) -> None:
        self.models = models
        self.checkpoint = "1"
        self.aborted: list[str] = []
        self._commands: asyncio.Queue[Generate] = asyncio.Queue()
        self._sinks: dict[str, Callable[[Delta | Refused], None]] = {}

    def serves(self, name: str) -> bool:
        return name in self.models

    def identity(self, name: str) -> str | None:
        return f"{name}:{self.checkpoint}" if self.serves(name) else None

    def generate(self, command: Generate, sink: Callable[[Delta | Refused], None], *, model: str) -> None:
        assert self.serves(model)
        self._sinks[command.job_id] = sink
        self._commands.put_nowait(command)

    def abort(self, job_id: str) -> None:
        self.aborted.append(job_id)
        if sink := self._sinks.pop(job_id, None):
            asyncio.get_running_loop().call_soon(sink, delta("", job_id=job_id, finish_reason="abort"))

    async def next(self) -> Generate:
        """The next job; waits for it."""
        return await asyncio.wait_for(self._commands.get(), 10)

    def say(self, command: Generate, text: str, *token_ids: int, finish_reason: str | None = None) -> None:
        """Report the output of one step, unless the job was aborted."""
        if sink := self._sinks.get(command.job_id):
            sink(delta(text, *token_ids, job_id=command.job_id, finish_reason=finish_reason))

    def say_late(self, sink: Callable[[Delta | Refused], None], command: Generate, text: str, *token_ids: int) -> None:
        """Report output that was under way when the job was aborted."""
        sink(delta(text, *token_ids, job_id=command.job_id))

    def sink_of(self, command: Generate) -> Callable[[Delta | Refused], None]:
        return self._sinks[command.job_id]


class Replica:
    """The answers of one replica."""

    def __init__(
        self, redis: StoreClient, jobs: Jobs, *, grace: float, lease_seconds: float, answer_timeout: float = 600
    ) -> None:
        settings = Settings(disconnect_grace=grace, lease_seconds=lease_seconds, answer_timeout=answer_timeout)
        metrics = Metrics()
        self.jobs, self.follower = jobs, LogFollower(redis)
        self.store = AnswerStore(redis, self.follower)
        self.admission = Admission(settings, metrics)
        presence = Presence(self.store, grace=grace)
        self.runner = AnswerRunner(
            settings=settings,
            jobs=jobs,
            preparation=None,  # type: ignore[arg-type]  # these answers are about no video
            videos=VideoStore(redis, self.follower),
            answers=self.store,
            presence=presence,
            metrics=metrics,
        )
        self.takeover = Takeover(
            runner=self.runner,
            jobs=jobs,
            admission=self.admission,
            videos=VideoStore(redis, self.follower),
            sessions=SessionStore(redis),
            answers=self.store,
            lease_seconds=lease_seconds,
            answer_timeout=answer_timeout,
            metrics=metrics,
        )
        self.answers = Answers(
            runner=self.runner,
            takeover=self.takeover,
            presence=presence,
            admission=self.admission,
            answers=self.store,
            grace=grace,
        )

    async def begin(
        self, redis: StoreClient, *, lease_seconds: float = 60, model: str = "tiny"
    ) -> tuple[RunningAnswer, Generate]:
        """Accept a question as `Questions` does; returns its answer and its job."""
        answer = running_answer(admission=self.admission, model=model)
        await accept(
            redis,
            answer.record,
            opening=answer.opening(),
            owner=answer.owner,
            lease_seconds=lease_seconds,
            model=model,
        )
        self.runner.begin(answer)
        return answer, await self.jobs.next()

    async def until_idle(self) -> None:
        """Wait until all places are free; an answer keeps its place until the store has its ending."""
        async with asyncio.timeout(5):
            while self.admission.num_answers:  # noqa: ASYNC110
                await asyncio.sleep(0.01)

    async def status(self, answer_id: str) -> str:
        return (await self.answers.get(TENANT, answer_id)).status

    async def read(self, answer_id: str, *, after: int = 0) -> list[LogEvent]:
        """All events to the end."""
        async with asyncio.timeout(20):
            batches = self.answers.follow(TENANT, answer_id, after=after)
            return [event async for batch in batches for event in batch]


@asynccontextmanager
async def replica(
    redis: StoreClient,
    *,
    grace: float = 9,
    lease_seconds: float = 60,
    answer_timeout: float = 600,
    models: tuple[str, ...] = ("tiny",),
    checkpoint: str = "1",
) -> AsyncIterator[Replica]:
    made = Replica(redis, Jobs(*models), grace=grace, lease_seconds=lease_seconds, answer_timeout=answer_timeout)
    made.jobs.checkpoint = checkpoint
    made.follower.start()
    made.runner.start()
    made.takeover.start()
    yield made
    await made.answers.close()
    await made.follower.close()


def names(events: list[LogEvent]) -> list[str]:
    return [event.name for event in events]


def texts(events: list[LogEvent]) -> list[str]:
    return [event.data["text"] for event in events if event.name == "delta"]


# -- readers


async def test_a_reader_gets_what_a_worker_says_to_the_end(redis: StoreClient) -> None:
    async with replica(redis) as here:
        answer, job = await here.begin(redis)
        here.jobs.say(job, "A red", 1)
        here.jobs.say(job, " square.", 2, finish_reason="stop")
        assert names(await here.read(answer.id)) == ["answer", "delta", "delta", "done"]
        assert await here.status(answer.id) == "completed"
        await here.until_idle()


async def test_an_answer_without_readers_is_stopped_after_the_grace_period(redis: StoreClient) -> None:
    async with replica(redis, grace=0.2) as here:
        answer, _ = await here.begin(redis)
        async with aclosing(here.answers.follow(TENANT, answer.id, after=0)) as events:
            await anext(events)
        await asyncio.sleep(0.6)
        assert await here.status(answer.id) == "cancelled"


async def test_without_grace_the_first_reader_still_has_time_to_arrive(redis: StoreClient) -> None:
    async with replica(redis, grace=0) as here:
        answer, job = await here.begin(redis)
        await asyncio.sleep(0.2)
        here.jobs.say(job, "Here.", 1, finish_reason="stop")
        assert names(await here.read(answer.id)) == ["answer", "delta", "done"]


async def test_a_reader_that_leaves_has_the_whole_grace_period_to_come_back(redis: StoreClient) -> None:
    async with replica(redis, grace=1) as here:
        answer, job = await here.begin(redis)
        async with aclosing(here.answers.follow(TENANT, answer.id, after=0)) as events:
            await anext(events)
            await asyncio.sleep(0.8)
        await asyncio.sleep(0.5)  # more than a period since the question, less than one since the reader left
        here.jobs.say(job, "Back.", 1, finish_reason="stop")
        assert names(await here.read(answer.id, after=1)) == ["delta", "done"]


async def test_a_reader_at_another_replica_counts_while_events_come_without_a_pause(redis: StoreClient) -> None:
    async with replica(redis, grace=0.3) as owner, replica(redis, grace=0.3, models=()) as other:
        answer, job = await owner.begin(redis)
        async with aclosing(owner.answers.follow(TENANT, answer.id, after=0)) as events:
            await anext(events)  # the connection breaks, and the client comes back at another replica
        reading = asyncio.create_task(other.read(answer.id))
        for _ in range(10):
            owner.jobs.say(job, "and ", 1)
            await asyncio.sleep(0.15)
        owner.jobs.say(job, "so on.", 1, finish_reason="stop")
        assert names(await reading) == ["answer", *["delta"] * 11, "done"]
        assert await other.status(answer.id) == "completed"


async def test_a_reader_gets_the_last_events_though_the_shared_reading_has_not_delivered_them(
    redis: StoreClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with replica(redis) as owner, replica(redis, models=()) as other:
        answer, job = await owner.begin(redis)
        async with aclosing(other.answers.follow(TENANT, answer.id, after=0)) as batches:
            assert names(list(await anext(batches))) == ["answer"]
            monkeypatch.setattr(other.follower._shared, "deliver", lambda *_, **__: None)  # it is slow, or reconnecting
            owner.jobs.say(job, "A red", 1)
            owner.jobs.say(job, " square.", 2, finish_reason="stop")
            async with asyncio.timeout(20):
                rest = [event async for batch in batches for event in batch]
        assert [event.number for event in rest] == [2, 3, 4]
        assert names(rest) == ["delta", "delta", "done"]


async def test_a_cancel_during_the_hand_over_reaches_the_next_owner(redis: StoreClient) -> None:
    async with replica(redis) as here:
        answer, _ = await here.begin(redis)
        answer.is_handed_over = True  # as `hand_over` sets it before it writes what is left
        await here.answers.cancel(TENANT, answer.id)
        verdict = await here.store.renew(TENANT, answer.id, answer.owner, lease_seconds=60)
        assert verdict is OwnerVerdict.CANCEL_REQUESTED


# -- take-over


async def orphan(
    redis: StoreClient, *, model: str = "tiny", generator: str | None = None, deadline: float | None = None
) -> AnswerRecord:
    """An answer with three logged tokens whose owner has just died."""
    record, answers = answer_record().model_copy(update={"deadline": deadline}), AnswerStore(redis, LogFollower(redis))
    await accept(redis, record, owner="own_dead", lease_seconds=0.001, model=model, generator=generator)
    events = (LogEvent(2, "delta", {"text": "A r"}, (1, 2)), LogEvent(3, "delta", {"text": "ed"}, (3,)))
    write = AnswerWrite(
        tenant=TENANT, answer_id=record.id, session_id=record.session_id, owner="own_dead", events=events
    )
    assert await answers.write([write]) == [OwnerVerdict.OWNED]
    await asyncio.sleep(0.01)
    return record


async def test_the_replica_that_is_asked_continues_an_answer_whose_owner_died(redis: StoreClient) -> None:
    record = await orphan(redis)
    async with replica(redis) as here:  # its leases are long, so the sweep does not come into play
        reading = asyncio.create_task(here.read(record.id))
        job = await here.jobs.next()
        assert (job.output_token_ids, job.params) == ((1, 2, 3), PARAMS)
        assert job.conversation.turns[-1].text == record.question
        here.jobs.say(job, " square.", 4, 5, finish_reason="stop")
        events = await reading
        assert [(e.number, e.name) for e in events] == list(
            enumerate(["answer", "delta", "delta", "delta", "done"], start=1)
        )
        ended = await here.answers.get(TENANT, record.id)
        assert ended.message is not None
        assert ended.message.content == "A red square."
        [_, said] = await SessionStore(redis).messages(TENANT, record.session_id)
        assert said == ended.message
        await here.until_idle()


async def test_the_sweep_finds_an_answer_without_owner_and_without_readers(redis: StoreClient) -> None:
    record = await orphan(redis)
    async with replica(redis, lease_seconds=1) as here:
        here.jobs.say(await here.jobs.next(), ".", 4, finish_reason="stop")
        assert names(await here.read(record.id))[-1] == "done"


async def test_a_replica_without_a_worker_takes_nothing_over(redis: StoreClient) -> None:
    record = await orphan(redis)
    async with replica(redis, lease_seconds=1, models=()) as here:
        await asyncio.sleep(1)
        assert await here.status(record.id) == "in_progress"
        assert await AnswerStore(redis, LogFollower(redis)).orphans() == [(TENANT, record.id)]


async def test_an_answer_waits_for_a_replica_that_serves_its_model(redis: StoreClient) -> None:
    record = await orphan(redis, model="large")
    async with replica(redis, lease_seconds=1, models=("tiny",)) as without:
        await asyncio.sleep(1)
        assert await without.status(record.id) == "in_progress"
        assert await without.store.orphans() == [(TENANT, record.id)]
        async with replica(redis, lease_seconds=1, models=("tiny", "large")) as other:
            job = await other.jobs.next()
            assert job.output_token_ids == (1, 2, 3)
            other.jobs.say(job, " square.", 4, finish_reason="stop")
            assert names(await without.read(record.id))[-1] == "done"


async def test_an_answer_is_continued_only_by_the_model_that_began_it(redis: StoreClient) -> None:
    record = await orphan(redis, generator="tiny:1")
    async with replica(redis, lease_seconds=1, checkpoint="2") as namesake:
        await asyncio.sleep(1)
        assert await namesake.status(record.id) == "in_progress"
        assert await namesake.store.orphans() == [(TENANT, record.id)]
        async with replica(redis, lease_seconds=1) as same:
            job = await same.jobs.next()
            same.jobs.say(job, " square.", 4, finish_reason="stop")
            assert texts(await namesake.read(record.id)) == ["A r", "ed", " square."]
    assert await redis.keys("answer:*:owner") == []


async def test_the_first_to_take_an_answer_over_by_its_name_records_what_generates_it(redis: StoreClient) -> None:
    record = await orphan(redis)
    async with replica(redis) as here:
        await here.status(record.id)
        await here.jobs.next()
        assert await here.store.generator(TENANT, record.id) == "tiny:1"


async def test_a_model_that_got_the_name_while_a_question_was_prepared_does_not_answer_it(redis: StoreClient) -> None:
    async with replica(redis, checkpoint="2") as here:
        answer = running_answer(admission=here.admission)
        answer.generator = "tiny:1"
        await accept(redis, answer.record, opening=answer.opening(), owner=answer.owner, generator="tiny:1")
        here.runner.begin(answer)
        [_, error] = await here.read(answer.id)
        assert error.data["error"]["code"] == "model_unavailable"


@pytest.mark.parametrize(("models", "checkpoint"), [((), "1"), (("tiny",), "2")])
async def test_a_cancel_ends_an_answer_whose_model_nobody_serves(
    redis: StoreClient, models: tuple[str, ...], checkpoint: str
) -> None:
    record = await orphan(redis, generator="tiny:1")
    async with replica(redis, models=models, checkpoint=checkpoint) as here:
        reading = asyncio.create_task(here.read(record.id))
        await here.answers.cancel(TENANT, record.id)
        events = await reading
        assert (names(events)[-1], events[-1].data["finish_reason"]) == ("done", "abort")
        ended = await here.answers.get(TENANT, record.id)
        assert (ended.status, ended.message and ended.message.content) == ("cancelled", "A red")
        assert len(await SessionStore(redis).messages(TENANT, record.session_id)) == 2
        assert await redis.keys("session:*:lease") == []
        await here.until_idle()


async def test_a_cancel_before_the_model_is_gone_is_found_by_the_sweep(redis: StoreClient) -> None:
    record = await orphan(redis, model="large")
    await AnswerStore(redis, LogFollower(redis)).request_cancel(TENANT, record.id)
    async with replica(redis, lease_seconds=1) as here:
        assert names(await here.read(record.id))[-1] == "done"
        assert await here.status(record.id) == "cancelled"


@pytest.mark.parametrize("limit", ["timeout", "answer_timeout"])
async def test_an_answer_whose_model_nobody_serves_ends_when_its_time_is_up(redis: StoreClient, limit: str) -> None:
    record = await orphan(redis, model="large", deadline=time.time() + 1 if limit == "timeout" else None)
    async with replica(redis, lease_seconds=1, answer_timeout=600 if limit == "timeout" else 1) as here:
        reading = asyncio.create_task(here.read(record.id))
        await asyncio.sleep(0.5)
        assert await here.status(record.id) == "in_progress"
        last = (await reading)[-1]
        assert (last.name, last.data["error"]["code"]) == ("error", "deadline_exceeded")
        assert await here.status(record.id) == "failed"
        assert await redis.keys("session:*:lease") == []
        await here.until_idle()


async def test_the_next_owner_ends_the_count_of_the_time_without_a_model(redis: StoreClient) -> None:
    record, store = await orphan(redis), AnswerStore(redis, LogFollower(redis))
    assert await store.unserved_since(TENANT, record.id, now=100.5) == 100.5
    assert await store.unserved_since(TENANT, record.id, now=200.0) == 100.5
    await store.take(TENANT, record.id, "own_second", lease_seconds=60)
    assert await store.unserved_since(TENANT, record.id, now=300.0) is None, "it has an owner"
    await store.release(TENANT, record.id, "own_second")
    assert await store.unserved_since(TENANT, record.id, now=400.0) == 400.0
    await redis.delete(keys.answer(TENANT, record.id))
    assert await store.unserved_since(TENANT, record.id, now=500.0) is None, "it is erased"


async def test_what_is_left_of_an_erased_answer_is_removed_whatever_is_served(redis: StoreClient) -> None:
    record = await orphan(redis, model="large")
    await redis.delete(keys.answer(TENANT, record.id))
    async with replica(redis, lease_seconds=1, models=()) as here:
        async with asyncio.timeout(5):
            while await here.store.orphans():  # noqa: ASYNC110
                await asyncio.sleep(0.05)


async def test_an_owner_that_was_paused_beyond_its_lease_writes_nothing_more_and_stops_its_job(
    redis: StoreClient,
) -> None:
    async with replica(redis) as paused, replica(redis) as successor:
        answer, job = await paused.begin(redis, lease_seconds=0.001)
        paused.jobs.say(job, "A", 1)
        await asyncio.sleep(0.1)
        reading = asyncio.create_task(successor.read(answer.id))
        taken = await successor.jobs.next()
        assert taken.output_token_ids == (1,)
        paused.jobs.say(job, " ghost", 6)
        successor.jobs.say(taken, " cat.", 2, finish_reason="stop")
        assert texts(await asyncio.wait_for(reading, 20)) == ["A", " cat."]
        await paused.until_idle()
        assert job.job_id in paused.jobs.aborted


async def test_a_cancel_at_another_replica_takes_effect_with_the_next_token(redis: StoreClient) -> None:
    async with replica(redis) as owner, replica(redis, models=()) as other:
        answer, job = await owner.begin(redis)
        await other.answers.cancel(TENANT, answer.id)
        owner.jobs.say(job, "A", 1)
        assert names(await owner.read(answer.id)) == ["answer", "delta", "done"]
        assert job.job_id in owner.jobs.aborted
        assert await other.status(answer.id) == "cancelled"


# -- the end of a replica


async def test_a_draining_replica_hands_its_answers_over_and_its_readers_read_on(redis: StoreClient) -> None:
    async with replica(redis) as here:
        answer, job = await here.begin(redis)
        here.jobs.say(job, "A", 1)
        reading = asyncio.create_task(here.read(answer.id))
        await asyncio.sleep(0.1)
        sink = here.jobs.sink_of(job)
        await here.answers.drain(patience=0.1, hurry=asyncio.Event())
        here.jobs.say_late(sink, job, " ghost", 2)
        async with replica(redis) as successor:
            assert await successor.status(answer.id) == "in_progress"
            taken = await successor.jobs.next()
            assert taken.output_token_ids == (1,)
            successor.jobs.say(taken, " cat.", 2, finish_reason="stop")
            assert texts(await asyncio.wait_for(reading, 20)) == ["A", " cat."]


async def test_the_answers_of_a_model_that_is_unloaded_continue_where_it_is_served(redis: StoreClient) -> None:
    async with replica(redis, models=("tiny", "large")) as here:
        kept, kept_job = await here.begin(redis)
        moved, job = await here.begin(redis, model="large")
        here.jobs.say(job, "A", 1)
        assert here.runner.num_answers_of("large") == 1
        here.jobs.models = ("tiny",)
        await here.runner.hand_over(model="large")
        assert (here.runner.num_answers_of("tiny"), here.runner.num_answers_of("large")) == (1, 0)
        async with replica(redis, models=("large",), lease_seconds=1) as successor:
            taken = await successor.jobs.next()
            assert taken.output_token_ids == (1,)
            successor.jobs.say(taken, " cat.", 2, finish_reason="stop")
            assert texts(await here.read(moved.id)) == ["A", " cat."]
        here.jobs.say(kept_job, "Here.", 1, finish_reason="stop")
        assert texts(await here.read(kept.id)) == ["Here."]


async def test_a_draining_replica_waits_for_answers_that_end_in_time(redis: StoreClient) -> None:
    async with replica(redis) as here:
        answer, job = await here.begin(redis)
        draining = asyncio.create_task(here.answers.drain(patience=20, hurry=asyncio.Event()))
        await asyncio.sleep(0.1)
        assert not draining.done()
        here.jobs.say(job, "Here.", 1, finish_reason="stop")
        await asyncio.wait_for(draining, 5)
        assert await here.status(answer.id) == "completed"


@pytest.mark.parametrize("accepted", ["before", "after"])
async def test_answers_of_a_replica_that_ends_are_left_without_owner(redis: StoreClient, accepted: str) -> None:
    async with replica(redis) as here:
        if accepted == "after":  # a question that was accepted just before the replica closed
            await here.answers.drain(patience=0, hurry=asyncio.Event())
        answer, job = await here.begin(redis)
        here.jobs.say(job, "A red", 1)
        await asyncio.sleep(0.1)
    [_, last] = await AnswerStore(redis, LogFollower(redis)).whole_log(TENANT, answer.id)
    assert (last.name, last.token_ids) == ("delta", (1,))
    assert await AnswerStore(redis, LogFollower(redis)).orphans() == [(TENANT, answer.id)]
    assert await Leases(redis, seconds=3).holder(keys.session_lease(TENANT, answer.session.id)) == answer.id


async def test_an_error_in_one_answer_does_not_stop_the_others(redis: StoreClient) -> None:
    async with replica(redis) as here:
        first, job = await here.begin(redis)
        second, other_job = await here.begin(redis)
        here.jobs.sink_of(job)(Refused(job_id=job.job_id, code="worker_lost", message="Lost."))
        here.jobs.say(other_job, "Fine.", 1, finish_reason="stop")
        assert names(await here.read(first.id)) == ["answer", "error"]
        assert names(await here.read(second.id)) == ["answer", "delta", "done"]
        await here.until_idle()

"""The dispatcher delivers outputs in order, and one job's sink or end does not disturb other jobs."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace

from model.engine.sampling_params import SamplingParams
from model.features import PartSpec
from model.video.inputs import InputSpec
from model.video.pixels import PixelSpec
from model.video.spec import FrameSpec
from service.observability.metrics import Metrics
from service.workers.dispatcher import Dispatcher
from service.workers.process import WorkerProcess
from service.workers.protocol import Abort, Command, Delta, Generate, ModelInfo, Refused, StepDone
from tests.service.workers.pools import CONFIG, Outputs, generate

INFO = ModelInfo(
    name="tiny",
    family="videochat",
    encoder_digest="ef" * 32,
    checkpoint_digest="",
    dtype="float32",
    quantization=None,
    inputs=InputSpec(frames=FrameSpec(count=8), pixels=PixelSpec(size=8)),
    parts=(PartSpec(name="video", shape=(1, 1)),),
    time_axis=None,
    num_video_tokens=1,
    num_parameters=1,
    max_model_len=100,
    default_sampling=SamplingParams(),
)


class RecordingWorker(WorkerProcess):
    """A worker without a process that records its commands."""

    def __init__(self) -> None:
        self.config = CONFIG
        self.commands: list[Command] = []

    def send(self, command: Command) -> None:
        self.commands.append(command)

    def tokens(self) -> dict[str, tuple[int, ...]]:
        """The output tokens in the command of each answer."""
        return {each.job_id: each.output_token_ids for each in self.commands if isinstance(each, Generate)}


def dispatching() -> Dispatcher:
    """A dispatcher without workers."""
    return Dispatcher(metrics=Metrics().of_model("tiny"))


def step(*deltas: Delta) -> StepDone:
    return StepDone(deltas=deltas, num_running=1, num_waiting=0, kv_cache_usage=0.0, num_preemptions=0)


def delta(job_id: str, *token_ids: int, finish_reason: str | None = None) -> Delta:
    return Delta(
        job_id=job_id,
        text="",
        token_ids=token_ids,
        finish_reason=finish_reason,
        num_prompt_tokens=1,
        num_cached_tokens=0,
        num_output_tokens=len(token_ids),
    )


def collected(outputs: Outputs) -> list[tuple[str, str | None]]:
    """The job and the finish reason or error code of each output so far."""
    found = []
    while not outputs.empty():
        output = outputs.get_nowait()
        found.append((output.job_id, output.code if isinstance(output, Refused) else output.finish_reason))
    return found


@asynccontextmanager
async def loop_errors() -> AsyncIterator[list[object]]:
    """The exceptions that reach the event loop's exception handler."""
    loop, errors = asyncio.get_running_loop(), list[object]()
    loop.set_exception_handler(lambda _, context: errors.append(context["exception"]))
    try:
        yield errors
    finally:
        loop.set_exception_handler(None)


async def test_outputs_arrive_in_order_and_not_within_a_call() -> None:
    dispatcher, worker, outputs = dispatching(), RecordingWorker(), Outputs()
    dispatcher.add_worker(worker, INFO)
    dispatcher.generate(generate("ans_1"), outputs.put_nowait)
    dispatcher.receive(worker, step(delta("ans_1", 1)))
    dispatcher.receive(worker, step(delta("ans_1", 2, finish_reason="stop")))
    assert outputs.empty()
    await asyncio.sleep(0)
    assert collected(outputs) == [("ans_1", None), ("ans_1", "stop")]
    assert repr(dispatcher) == "Dispatcher(jobs=0, waiting=0)"


async def test_an_abort_goes_to_the_worker_and_its_end_to_the_sink() -> None:
    dispatcher, worker, outputs = dispatching(), RecordingWorker(), Outputs()
    dispatcher.add_worker(worker, INFO)
    dispatcher.generate(generate("ans_1"), outputs.put_nowait)
    dispatcher.abort("ans_1")
    dispatcher.abort("ans_1")
    assert worker.commands[1:] == [Abort(job_id="ans_1")]
    dispatcher.receive(worker, step(delta("ans_1", finish_reason="abort")))
    await asyncio.sleep(0)
    assert collected(outputs) == [("ans_1", "abort")]


async def test_an_answer_keeps_its_tokens_when_its_worker_dies() -> None:
    dispatcher, first, second, outputs = (
        dispatching(),
        RecordingWorker(),
        RecordingWorker(),
        Outputs(),
    )
    dispatcher.add_worker(first, INFO)
    dispatcher.generate(replace(generate("ans_1"), output_token_ids=(7,)), outputs.put_nowait)
    dispatcher.generate(generate("ans_2"), outputs.put_nowait)
    dispatcher.receive(first, step(delta("ans_1", 8, 9)))
    dispatcher.abort("ans_2")
    dispatcher.remove_worker(first)
    assert repr(dispatcher) == "Dispatcher(jobs=1, waiting=1)"
    dispatcher.add_worker(second, INFO)
    assert (first.tokens(), second.tokens()) == ({"ans_1": (7,), "ans_2": ()}, {"ans_1": (7, 8, 9)})
    dispatcher.receive(first, step(delta("ans_1", 10)))
    await asyncio.sleep(0)
    assert collected(outputs) == [("ans_1", None), ("ans_2", "abort")], "a late report of the dead worker is dropped"


async def test_suspects_run_one_at_a_time() -> None:
    dispatcher, outputs = dispatching(), Outputs()
    for job_id in ("ans_1", "ans_2"):
        dispatcher.generate(generate(job_id), outputs.put_nowait)
    for _ in range(2):
        worker = RecordingWorker()
        dispatcher.add_worker(worker, INFO)
        assert list(worker.tokens()) == ["ans_1", "ans_2"]
        dispatcher.remove_worker(worker)
    last = RecordingWorker()
    dispatcher.add_worker(last, INFO)
    assert list(last.tokens()) == ["ans_1"]
    dispatcher.receive(last, step(delta("ans_1", 1)))
    assert list(last.tokens()) == ["ans_1", "ans_2"], "a job with output is no suspect any more"
    dispatcher.remove_worker(last)
    await asyncio.sleep(0)
    assert collected(outputs) == [("ans_1", None), ("ans_2", "worker_lost")]


async def test_a_sink_may_call_the_dispatcher() -> None:
    dispatcher, outputs = dispatching(), Outputs()

    def abort(job_id: str) -> Callable[[Delta | Refused], None]:
        def sink(output: Delta | Refused) -> None:
            outputs.put_nowait(output)
            dispatcher.abort(job_id)

        return sink

    dispatcher.generate(generate("ans_1"), abort("ans_2"))
    dispatcher.generate(generate("ans_2"), abort("ans_1"))
    dispatcher.abort("ans_1")
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert collected(outputs) == [("ans_1", "abort"), ("ans_2", "abort")]
    assert repr(dispatcher) == "Dispatcher(jobs=0, waiting=0)"


async def test_a_sink_that_raises_disturbs_no_other_job() -> None:
    dispatcher, worker, outputs = dispatching(), RecordingWorker(), Outputs()
    dispatcher.add_worker(worker, INFO)

    def fail(output: Delta | Refused) -> None:
        raise ValueError(output.job_id)

    dispatcher.generate(generate("ans_1"), fail)
    dispatcher.generate(generate("ans_2"), outputs.put_nowait)
    async with loop_errors() as errors:
        dispatcher.receive(worker, step(delta("ans_1", 1), delta("ans_2", 2)))
        await asyncio.sleep(0)
    assert collected(outputs) == [("ans_2", None)]
    assert [str(error) for error in errors] == ["ans_1"]

"""Models are loaded into memory that is free, and unloaded when their answers have ended or their time is over."""

import asyncio
import threading
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

import model.tiny
from service.errors import Conflict, InsufficientMemory, InvalidRequest, NotFound, Unavailable
from service.model_loading import ModelLoading
from service.settings import Settings
from service.workers import memory_check, size_reader
from service.workers.memory_check import MemoryCheck
from service.workers.model_spec import ModelOptions
from service.workers.pools import Pools
from service.workers.size_reader import SizeReader
from tests.service.workers.pools import PATIENCE, Outputs, end_of, generate, pools_of

pytestmark = pytest.mark.asyncio(loop_scope="module")


class Runner:
    """Answers of models, without their text."""

    def __init__(self) -> None:
        self.answers: list[str] = []
        self.handed_over: list[str] = []

    def num_answers_of(self, model: str) -> int:
        return self.answers.count(model)

    async def hand_over(self, *, model: str) -> None:
        self.handed_over += [answer for answer in self.answers if answer == model]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def pools() -> AsyncIterator[Pools]:
    async with pools_of("tiny=videochat:") as pools:
        await pools.get(None).pool.info(timeout=PATIENCE)
        yield pools


def loading(pools: Pools, runner: Runner | None = None, *, grace: float = 0) -> ModelLoading:
    settings = Settings(device="cpu", threads=1)
    return ModelLoading(settings, pools=pools, runner=runner or Runner(), grace=grace)  # type: ignore[arg-type]


def options(**fields: object) -> ModelOptions:
    return ModelOptions.model_validate({"family": "videochat", **fields})


async def until_gone(pools: Pools, name: str) -> None:
    async with asyncio.timeout(PATIENCE):
        while name in pools:  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def test_a_loaded_model_answers_until_it_is_unloaded(pools: Pools) -> None:
    models, outputs = loading(pools, grace=60), Outputs()
    second = await models.load("second", options(max_num_seqs=2))
    assert second.state == "loading"
    await asyncio.wait_for(pools.info("second"), PATIENCE)
    pools.generate(generate("ans_1", max_tokens=1), outputs.put_nowait, model="second")
    assert models.unload("second").state == "unloading"
    assert models.unload("second") is second, "a repetition changes nothing"
    assert (await end_of(outputs, "ans_1"))[1] == "engine_error", "the job, which has no features, ends by itself"
    await until_gone(pools, "second")
    await models.close()


async def test_answers_that_outlast_the_grace_are_handed_over(pools: Pools) -> None:
    runner = Runner()
    models = loading(pools, runner)
    await models.load("second", options())
    runner.answers = ["tiny", "second"]
    models.unload("second")
    await until_gone(pools, "second")
    assert runner.handed_over == ["second"]
    await models.close()


async def test_the_default_model_and_an_unknown_one_cannot_be_unloaded(pools: Pools) -> None:
    models = loading(pools)
    with pytest.raises(Conflict, match="default model cannot be unloaded"):
        models.unload("tiny")
    with pytest.raises(NotFound, match="no model 'second'; it has 'tiny'"):
        models.unload("second")


async def test_a_model_that_cannot_be_served_is_refused(pools: Pools, tmp_path: Path) -> None:
    models = loading(pools)
    with pytest.raises(Conflict, match="There is a model 'tiny'"):
        await models.load("tiny", options())
    with pytest.raises(InvalidRequest, match=r"holds no \*\.safetensors") as refused:
        await models.load("second", options(checkpoint=str(tmp_path)))
    assert refused.value.param == "checkpoint"
    with pytest.raises(InvalidRequest, match="at most 64 workers"):
        await models.load("second", options(workers=64))
    assert [served.spec.name for served in pools] == ["tiny"]


async def test_files_that_cannot_be_read_in_time_stop_neither_the_service_nor_its_end(
    pools: Pools, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stalled = threading.Event()
    monkeypatch.setattr(size_reader, "checkpoint_footprint", lambda *_, **__: stalled.wait(PATIENCE))
    models = loading(pools)
    models._memory_check = MemoryCheck(pools, reader=SizeReader(timeout=0.2))
    waiting = [asyncio.create_task(models.load(f"m{i}", options(checkpoint=str(tmp_path)))) for i in range(4)]
    began = asyncio.get_running_loop().time()
    await asyncio.sleep(0.01)
    assert asyncio.get_running_loop().time() - began < 0.2
    for task in waiting:
        with pytest.raises(Unavailable, match=r"could not be read within 0\.2 seconds"):
            await task
    with pytest.raises(Unavailable, match="4 checkpoints are being read already"):
        await models.load("m4", options(checkpoint=str(tmp_path)))
    assert all(thread.daemon for thread in threading.enumerate() if thread.name == "sizes of a checkpoint")
    stalled.set()
    monkeypatch.undo()
    await asyncio.sleep(0.1)
    with pytest.raises(InvalidRequest, match=r"holds no \*\.safetensors"):
        await models.load("m5", options(checkpoint=str(tmp_path)))


async def test_of_two_models_of_one_name_one_is_loaded(pools: Pools) -> None:
    models = loading(pools)
    checkpoint = str(Path(model.tiny.__file__).parent / "weights")
    both = [models.load("twin", options(checkpoint=checkpoint)) for _ in range(2)]
    ends = await asyncio.gather(*both, return_exceptions=True)
    assert sorted(type(end).__name__ for end in ends) == ["Conflict", "ServedModel"], "whichever was read first"
    models.unload("twin")
    await until_gone(pools, "twin")
    await models.close()
    with pytest.raises(Unavailable, match="is stopping"):
        await models.load("late", options())


async def test_a_model_that_does_not_fit_is_refused_with_the_numbers(
    pools: Pools, monkeypatch: pytest.MonkeyPatch
) -> None:
    models, process = loading(pools), memory_check._PROCESS_BYTES
    monkeypatch.setattr(memory_check, "free_main_memory", lambda: process * 1.5)
    with pytest.raises(InsufficientMemory, match=r"on the device cpu: about 0\.78 GiB are needed, and 0\.59 GiB are"):
        await models.load("second", options(workers=2))
    monkeypatch.setattr(memory_check, "free_main_memory", lambda: process + 10e6)
    with pytest.raises(InsufficientMemory):
        await models.load("second", options(checkpoint=str(Path(model.tiny.__file__).parent / "weights")))
    await models.load("second", options())
    with pytest.raises(InsufficientMemory):
        await models.load("third", options())  # the memory of a model that is being loaded counts
    models.unload("second")
    await until_gone(pools, "second")
    await models.close()


async def test_before_a_worker_is_ready_the_free_memory_is_not_known() -> None:
    async with pools_of("tiny=videochat:") as pools:
        with pytest.raises(Unavailable, match="No worker is ready yet"):
            await loading(pools).load("second", options())

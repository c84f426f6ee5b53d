"""Each model of a replica has workers of its own, which come and go without the others."""

import asyncio
from pathlib import Path

import pytest

from service.errors import NotFound, Unavailable
from service.observability.metrics import Metrics
from service.workers.model_spec import ModelSpec
from service.workers.specs import WorkerSpec
from tests.service.workers.pools import PATIENCE, Outputs, conversation, encode, end_of, generate, pools_of


def spec(name: str, *, family: str = "videochat", checkpoint: Path | None = None) -> ModelSpec:
    workers = (WorkerSpec(role="encode", device="cpu"), WorkerSpec(role="generate", device="cpu"))
    return ModelSpec(
        name=name,
        family=family,
        checkpoint=checkpoint,
        dtype="float32",
        quantization=None,
        workers=workers,
        max_num_seqs=4,
    )


async def test_models_are_served_side_by_side_and_a_broken_one_disturbs_none(tmp_path: Path) -> None:
    """One test, because starting workers takes seconds."""
    metrics, outputs = Metrics(), Outputs()
    missing = f"broken=videochat:{tmp_path / 'nowhere'}"
    async with pools_of("tiny=videochat:", "other=video-chatgpt:", missing, metrics=metrics) as pools:
        assert pools.default == "tiny"
        assert {number: model.spec.name for model in pools for number in model.workers} == {
            0: "tiny",
            1: "other",
            2: "broken",
        }
        async with asyncio.timeout(PATIENCE):
            infos = {name: await pools.info(name) for name in (None, "other")}
        assert [(info.name, info.family) for info in infos.values()] == [
            ("tiny", "videochat"),
            ("other", "video-chatgpt"),
        ]
        assert pools.ready

        # a model that cannot be loaded is a problem with its name, and tells why
        with pytest.raises(Unavailable, match=r"The model 'broken' cannot be loaded: .*config\.json does not exist"):
            await asyncio.wait_for(pools.info("broken"), PATIENCE)
        with pytest.raises(Unavailable, match="cannot be loaded"):
            pools.get("broken").check_open()
        [problem] = pools.problems
        assert problem.startswith("Worker 2 of the model 'broken' (all, device cpu) does not start: ")
        assert [model.state for model in pools] == ["ready", "ready", "broken"]
        assert [pools.serves(name) for name in ("tiny", "other", "broken", "huge")] == [True, True, False, False]
        assert pools.identity("tiny") == f"videochat:{infos[None].checkpoint_digest}"
        assert [pools.identity(name) for name in ("broken", "huge")] == [None, None]
        with pytest.raises(NotFound, match="no model 'huge'; it has 'tiny', 'other', 'broken'"):
            await pools.info("huge")

        # each job goes to the workers of its model
        blob = (await pools.encode(encode(infos[None], "req_1"), model="tiny")).blob
        pools.generate(generate("ans_1", blob=blob), outputs.put_nowait, model="tiny")
        assert (await end_of(outputs, "ans_1"))[1] in {"stop", "length"}
        lengths = {name: await pools.check(conversation(), model=name) for name in ("tiny", "other")}
        assert lengths["tiny"] != lengths["other"]
        pools.generate(generate("ans_2", blob=blob, max_tokens=2000), outputs.put_nowait, model="tiny")
        await outputs.get()
        pools.abort("ans_2")
        assert (await end_of(outputs, "ans_2"))[1] == "abort"
        value = metrics.registry.get_sample_value
        assert value("reeltalk_encode_batch_clips_count", {"model_name": "tiny"}) == 1
        assert value("reeltalk_encode_batch_clips_count", {"model_name": "other"}) == 0

        # a model that is loaded later has numbers that no other worker has; an unloaded one leaves nothing behind
        blob = (await pools.encode(encode(infos["other"], "req_2"), model="other")).blob
        pools.generate(generate("ans_3", blob=blob, max_tokens=2000), outputs.put_nowait, model="other")
        await outputs.get()
        await pools.unload("other")
        _, reason = await end_of(outputs, "ans_3")
        assert reason == "model_unavailable", "an answer that is cut off names the cause"
        with pytest.raises(Unavailable, match="was unloaded"):
            await pools.check(conversation(), model="other")
        assert "other" not in pools
        assert 'model_name="other"' not in metrics.render().decode()
        late = pools.load(spec("late"))
        assert sorted(late.workers) == [1, 3]
        assert late.state == "loading"
        assert (await asyncio.wait_for(pools.info("late"), PATIENCE)).name == "late"
        assert {number: worker.device for number, worker in pools.workers.items()} == dict.fromkeys(range(4), "cpu")
        assert await pools.check(conversation(), model="late") == lengths["tiny"]


async def test_a_model_that_is_still_being_loaded_is_unavailable_for_now(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.workers.served_model.MODEL_TIMEOUT", 0.01)
    async with pools_of("tiny=videochat:") as pools:
        assert pools.get(None).state == "loading"
        assert pools.get(None).info is None
        with pytest.raises(Unavailable, match="'tiny' is not loaded yet; try again"):
            await pools.info(None)
        pools.get(None).check_open()
        pools.get(None).is_unloading = True
        with pytest.raises(Unavailable, match="'tiny' is being unloaded"):
            pools.get(None).check_open()

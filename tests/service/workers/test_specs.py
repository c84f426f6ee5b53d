"""`REELTALK_WORKERS` is parsed into workers, each with a device and a share of it."""

from collections.abc import Sequence

import pytest

from service.workers.specs import WorkerSpec, assign_devices, check_device, device_share, parse_workers


def parsed(text: str, *, device: str = "auto") -> list[tuple[str, str]]:
    return [(spec.role, spec.device) for spec in parse_workers(text, device=device)]


def assigned(specs: Sequence[WorkerSpec], *, num_gpus: int) -> list[str]:
    return [spec.device for spec in assign_devices(dict(enumerate(specs)), num_gpus=num_gpus).values()]


def test_a_number_is_that_many_workers_of_the_role_all() -> None:
    assert parsed("2") == [("all", "auto"), ("all", "auto")]


def test_an_entry_has_a_role_a_count_and_a_device() -> None:
    assert parsed("encode, generate*2") == [("encode", "auto"), ("generate", "auto"), ("generate", "auto")]
    assert parsed("encode@cpu,generate*2@cuda:1,all", device="cuda:0") == [
        ("encode", "cpu"),
        ("generate", "cuda:1"),
        ("generate", "cuda:1"),
        ("all", "cuda:0"),
    ]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("encode", "no worker answers questions"),
        ("generate*3", "no worker encodes videos"),
        ("0", "at least one worker is needed"),
        ("all*0", "at least one worker is needed"),
        ("encode*0,generate*0", "at least one worker is needed"),
        ("65", "at most 64"),
        ("all*99,all*99", "at most 64"),
        ("", "does not describe a worker"),
        ("-1", "does not describe a worker"),
        ("encode,,generate", "does not describe a worker"),
        ("encode,speak", "'speak' does not describe a worker"),
        ("all@tpu", "'all@tpu' does not describe a worker"),
        ("all@cuda:", "does not describe a worker"),
        ("all*9999", "does not describe a worker"),
    ],
)
def test_a_malformed_text_and_workers_that_cannot_do_both_are_refused(text: str, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        parse_workers(text, device="auto")


def test_a_model_that_sees_no_videos_needs_no_worker_that_encodes() -> None:
    assert [spec.role for spec in parse_workers("generate*2", device="cpu", has_encoder=False)] == ["generate"] * 2
    assert [spec.role for spec in parse_workers("1", device="cpu", has_encoder=False)] == ["all"]
    with pytest.raises(ValueError, match="has the role encode, but the model sees no videos"):
        parse_workers("encode,generate", device="cpu", has_encoder=False)
    with pytest.raises(ValueError, match="at least one worker is needed"):
        parse_workers("0", device="cpu", has_encoder=False)


def test_auto_takes_the_gpus_in_turn_and_the_cpu_without_one() -> None:
    auto = parse_workers("encode,generate*3", device="auto")
    assert assigned(auto, num_gpus=2) == ["cuda:0", "cuda:1", "cuda:0", "cuda:1"]
    assert set(assigned(auto, num_gpus=0)) == {"cpu"}
    named = parse_workers("encode@cpu,generate@cuda,all@cuda:1,all@cuda", device="auto")
    assert assigned(named, num_gpus=2) == ["cpu", "cuda:0", "cuda:1", "cuda:1"]


@pytest.mark.parametrize("device", ["cuda", "cuda:2"])
def test_a_worker_refuses_only_its_own_missing_gpu(device: str) -> None:
    num_gpus = 2 if device == "cuda:2" else 0
    mine, other = assign_devices(
        {0: WorkerSpec(role="all", device=device), 1: WorkerSpec(role="all", device="cpu")}, num_gpus=num_gpus
    ).values()
    with pytest.raises(ValueError, match=r"configured for cuda:\d, but torch finds \d GPUs"):
        check_device(mine, num_gpus=num_gpus)
    check_device(other, num_gpus=num_gpus)


@pytest.mark.parametrize("text", ["1", "all*3@cuda:0", "encode@cuda:0,generate*2@cuda:0,generate@cuda:1,all@cpu"])
def test_the_shares_of_a_device_add_up_to_one(text: str) -> None:
    specs = assign_devices(dict(enumerate(parse_workers(text, device="cpu"))), num_gpus=2)
    for device in {spec.device for spec in specs.values()}:
        shares = [device_share(specs, n) for n, spec in specs.items() if spec.device == device]
        assert sum(shares) == pytest.approx(1)
    generating = [device_share(specs, n) for n, spec in specs.items() if spec.role != "encode"]
    assert all(s == 1 for s in generating) if text == "1" else min(generating) > 0.25

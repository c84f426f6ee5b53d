"""What an operator writes becomes workers, each on a device of which it has a share."""

import pytest

from service.workers.roles import Place, check_device, parse_places, resolve, share


def places(text: str, *, device: str = "auto") -> list[tuple[str, str]]:
    return [(place.role, place.device) for place in parse_places(text, device=device)]


def test_a_number_is_so_many_workers_that_do_everything() -> None:
    assert places("2") == [("all", "auto"), ("all", "auto")]


def test_roles_are_counted_and_placed() -> None:
    assert places("encode, generate*2") == [("encode", "auto"), ("generate", "auto"), ("generate", "auto")]
    assert places("encode@cpu,generate*2@cuda:1,all", device="cuda:0") == [
        ("encode", "cpu"),
        ("generate", "cuda:1"),
        ("generate", "cuda:1"),
        ("all", "cuda:0"),
    ]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("encode", "no worker would answer questions"),
        ("generate*3", "no worker would encode videos"),
        ("0", "no worker would encode videos"),
        ("all*0", "no worker would encode videos"),
        ("65", "at most 64"),
        ("all*99,all*99", "at most 64"),
        ("", "is no worker"),
        ("-1", "is no worker"),
        ("encode,,generate", "is no worker"),
        ("encode,speak", "'speak' is no worker"),
        ("all@tpu", "'all@tpu' is no worker"),
        ("all@cuda:", "is no worker"),
        ("all*9999", "is no worker"),
    ],
)
def test_a_pool_that_could_not_do_both_or_is_not_understood_is_refused(text: str, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        parse_places(text, device="auto")


def test_what_names_no_gpu_takes_them_in_turn_and_the_cpu_where_there_is_none() -> None:
    auto = parse_places("encode,generate*3", device="auto")
    assert [place.device for place in resolve(auto, num_gpus=2)] == ["cuda:0", "cuda:1", "cuda:0", "cuda:1"]
    assert {place.device for place in resolve(auto, num_gpus=0)} == {"cpu"}
    named = parse_places("encode@cpu,generate@cuda,all@cuda:1,all@cuda", device="auto")
    assert [place.device for place in resolve(named, num_gpus=2)] == ["cpu", "cuda:0", "cuda:1", "cuda:1"]


@pytest.mark.parametrize("device", ["cuda", "cuda:2"])
def test_a_gpu_that_is_not_there_is_refused_by_whom_it_concerns(device: str) -> None:
    num_gpus = 2 if device == "cuda:2" else 0
    mine, other = resolve([Place(role="all", device=device), Place(role="all", device="cpu")], num_gpus=num_gpus)
    with pytest.raises(ValueError, match=r"is to run on cuda:\d, but torch finds \d GPUs"):
        check_device(mine, num_gpus=num_gpus)
    check_device(other, num_gpus=num_gpus)


@pytest.mark.parametrize("text", ["1", "all*3@cuda:0", "encode@cuda:0,generate*2@cuda:0,generate@cuda:1,all@cpu"])
def test_the_workers_of_a_device_share_it_and_no_more(text: str) -> None:
    resolved = resolve(parse_places(text, device="cpu"), num_gpus=2)
    for device in {place.device for place in resolved}:
        shares = [share(resolved, n) for n, place in enumerate(resolved) if place.device == device]
        assert sum(shares) == pytest.approx(1)
    answering = [share(resolved, n) for n, place in enumerate(resolved) if place.role != "encode"]
    assert all(s == 1 for s in answering) if text == "1" else min(answering) > 0.25

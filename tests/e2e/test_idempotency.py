"""A request that is repeated after a lost response, at any replica, has its effect once."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from uuid import uuid4

import httpx2
import pytest

from service.store.redis_server import embedded_redis
from tests.e2e.test_bad_input import refusal
from tests.running import Event, RunningService, parse_events, running


@pytest.fixture(scope="module")
def replicas(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[RunningService, RunningService]]:
    folder = tmp_path_factory.mktemp("repeats")
    with ExitStack() as stack:
        url = stack.enter_context(embedded_redis(folder / "shared"))
        shared = {"REELTALK_REDIS_URL": url, "REELTALK_MEDIA_DIR": str(folder / "media")}
        yield (
            stack.enter_context(running(folder / "a", **shared)),
            stack.enter_context(running(folder / "b", **shared)),
        )


@pytest.fixture
def headers() -> dict[str, str]:
    return {"Idempotency-Key": str(uuid4())}


def ask(service: RunningService, session_id: str, headers: dict[str, str], **fields: object) -> httpx2.Response:
    body = {"content": "Tell me all.", "max_tokens": 40, "ignore_eos": True, **fields}
    return service.client.post(f"/v1/sessions/{session_id}/messages", json=body, headers=headers)


def turns(service: RunningService, session_id: str) -> int:
    return len(service.client.get(f"/v1/sessions/{session_id}/messages").json()["data"])


def test_a_repeated_question_gets_the_same_answer_at_the_other_replica(
    replicas: tuple[RunningService, RunningService], drawn: Path, headers: dict[str, str]
) -> None:
    here, there = replicas
    session_id = here.open_session(here.upload(drawn)["id"])
    first, again = ask(here, session_id, headers), ask(there, session_id, headers)
    assert first.status_code == again.status_code == 200
    assert first.json() == again.json()
    assert turns(here, session_id) == 2
    other = ask(there, session_id, headers, max_tokens=41)
    assert refusal(other, 422) == "idempotency_key_reused"
    assert other.json()["error"]["param"] == "Idempotency-Key"
    assert turns(here, session_id) == 2
    assert ask(here, session_id, {}).json()["id"] != first.json()["id"]  # without a key the request is another question


def test_a_lost_stream_is_resumed_from_its_start(
    replicas: tuple[RunningService, RunningService], drawn: Path, headers: dict[str, str]
) -> None:
    here, there = replicas
    session_id = here.open_session(here.upload(drawn)["id"])
    body = {"content": "Tell me all.", "max_tokens": 300, "ignore_eos": True, "stream": True}
    path = f"/v1/sessions/{session_id}/messages"
    begun: list[Event] = []
    with here.client.stream("POST", path, json=body, headers=headers) as reply:
        for event in parse_events(reply.iter_lines()):
            begun.append(event)
            if len(begun) == 5:
                break  # the connection is lost …
    with there.client.stream("POST", path, json=body, headers=headers) as reply:  # … and the client asks again
        assert reply.status_code == 200
        events = list(parse_events(reply.iter_lines()))
    assert events[:5] == begun
    assert [event.id for event in events] == list(range(1, len(events) + 1))
    assert events[-1].data["usage"]["completion_tokens"] == 300
    assert turns(here, session_id) == 2


def test_one_of_many_concurrent_repetitions_is_executed(
    replicas: tuple[RunningService, RunningService], drawn: Path, headers: dict[str, str]
) -> None:
    here, _ = replicas
    session_id = here.open_session(here.upload(drawn)["id"])

    with ThreadPoolExecutor(12) as threads:
        replies = list(threads.map(lambda number: ask(replicas[number % 2], session_id, headers), range(12)))
    done = [reply for reply in replies if reply.status_code == 200]
    assert len({reply.json()["answer_id"] for reply in done}) == 1
    for reply in set(replies) - set(done):
        assert refusal(reply, 409) == "request_in_progress"
        assert int(reply.headers["Retry-After"]) >= 1
    assert turns(here, session_id) == 2


def test_a_repeated_creation_returns_the_same_session(
    replicas: tuple[RunningService, RunningService], drawn: Path, headers: dict[str, str]
) -> None:
    here, there = replicas
    body = {"video_ids": [here.upload(drawn)["id"]]}
    replies = [replica.client.post("/v1/sessions", json=body, headers=headers) for replica in (here, there, here)]
    assert [reply.status_code for reply in replies] == [201] * 3
    assert len({reply.json()["id"] for reply in replies}) == 1
    other = here.client.post("/v1/sessions", json=body | {"system": "Be brief."}, headers=headers)
    assert refusal(other, 422) == "idempotency_key_reused"


def test_a_repeated_upload_is_the_same_video_and_other_bytes_are_refused(
    replicas: tuple[RunningService, RunningService], drawn: Path, yoga: Path, headers: dict[str, str]
) -> None:
    here, there = replicas

    def send(replica: RunningService, path: Path) -> httpx2.Response:
        return replica.client.post(
            "/v1/videos", content=path.read_bytes(), headers=headers | {"Content-Type": "video/mp4"}
        )

    first, again = send(here, drawn), send(there, drawn)
    assert first.json()["id"] == again.json()["id"]
    listed = len(here.client.get("/v1/videos").json()["data"])
    assert refusal(send(here, yoga), 422) == "idempotency_key_reused"
    assert len(here.client.get("/v1/videos").json()["data"]) == listed


def test_a_refused_question_can_be_repeated(
    replicas: tuple[RunningService, RunningService], drawn: Path, headers: dict[str, str]
) -> None:
    here, there = replicas
    session_id = here.open_session(here.upload(drawn)["id"])
    with here.stream(session_id, "Tell me all.", max_tokens=200, ignore_eos=True) as stream:
        next(stream)
        assert refusal(ask(there, session_id, headers), 409) == "session_busy"
        list(stream)
    assert ask(there, session_id, headers).status_code == 200
    assert turns(here, session_id) == 4


@pytest.mark.parametrize("key", ["", "x" * 256, "two words"])
def test_a_key_has_bounds(replicas: tuple[RunningService, RunningService], key: str) -> None:
    reply = replicas[0].client.post("/v1/sessions", json={"video_ids": []}, headers={"Idempotency-Key": key})
    assert reply.status_code == 422

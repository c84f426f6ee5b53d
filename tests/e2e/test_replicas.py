"""Two replicas that share Redis and a media directory serve each other's sessions and answers."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest

from service.commands.demo import SAMPLE
from service.store.redis_server import embedded_redis
from tests.clips import h264_mp4
from tests.running import RunningService, parse_events, running


@pytest.fixture(scope="module")
def replicas(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[RunningService, RunningService]]:
    folder = tmp_path_factory.mktemp("fleet")
    with ExitStack() as stack:
        url = stack.enter_context(embedded_redis(folder / "shared"))
        shared = {"REELTALK_REDIS_URL": url, "REELTALK_MEDIA_DIR": str(folder / "media")}
        yield (
            stack.enter_context(running(folder / "a", REELTALK_DISCONNECT_GRACE="1", **shared)),
            stack.enter_context(running(folder / "b", REELTALK_DISCONNECT_GRACE="1", **shared)),
        )


def test_a_session_continues_at_the_other_replica(replicas: tuple[RunningService, RunningService]) -> None:
    here, there = replicas
    session_id = here.open_session(here.upload(SAMPLE)["id"])
    assert here.ask(session_id, "Which object moves right?", max_tokens=16)["content"] == "The red circle moves right."
    assert there.ask(session_id, "How big is it?", max_tokens=16)["content"] == "The red circle is large."
    assert there.metric("reeltalk_video_encode_seconds_count") == 0


def test_an_answer_is_followed_and_stopped_from_the_other_replica(
    replicas: tuple[RunningService, RunningService], drawn: Path
) -> None:
    here, there = replicas
    session_id = here.open_session(here.upload(drawn)["id"])
    with here.stream(session_id, "Tell me all.", max_tokens=300, ignore_eos=True) as stream:
        first = next(stream)
    # the reader is at the other replica; the answer must continue beyond the grace period of its owner
    with there.client.stream("GET", f"/v1/answers/{first.data['id']}/events", headers={"Last-Event-ID": "1"}) as reply:
        events = list(parse_events(reply.iter_lines()))
    assert [event.id for event in events] == list(range(2, len(events) + 2))
    assert events[-1].data["usage"]["completion_tokens"] == 300

    with here.stream(session_id, "And more?", max_tokens=1500, ignore_eos=True) as stream:
        answer_id = next(stream).data["id"]
        there.client.post(f"/v1/answers/{answer_id}/cancel")
        assert list(stream)[-1].data["finish_reason"] == "abort"


def test_a_video_is_encoded_once_for_clients_of_both_replicas(
    replicas: tuple[RunningService, RunningService], tmp_path: Path
) -> None:
    path = h264_mp4(tmp_path / "cold.mp4", frames=37)
    encoded = sum(replica.metric("reeltalk_video_encode_seconds_count") for replica in replicas)

    def ask(number: int) -> str:
        replica = replicas[number % 2]
        video_id = replica.client.post("/v1/videos", files={"file": ("cold.mp4", path.read_bytes())}).json()["id"]
        content: str = replica.ask(replica.open_session(video_id), "What is it?", max_tokens=16)["content"]
        return content

    with ThreadPoolExecutor(12) as threads:
        answers = set(threads.map(ask, range(12)))
    assert len(answers) == 1
    assert sum(replica.metric("reeltalk_video_encode_seconds_count") for replica in replicas) == encoded + 1

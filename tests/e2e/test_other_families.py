"""Families other than the default one are served over HTTP, with random weights."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from service.commands.main import app
from tests.clips import numbered_pictures, write_video
from tests.published import publish_video_chatgpt
from tests.running import RunningService, running


@pytest.fixture(scope="module")
def video_chatgpt(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningService]:
    with running(tmp_path_factory.mktemp("data"), "--family", "video-chatgpt") as service:
        yield service


def test_video_chatgpt_answers_twice_and_repeats_its_answers(video_chatgpt: RunningService, drawn: Path) -> None:
    video = video_chatgpt.upload(drawn)
    assert (video["status"], len(video["frames"])) == (
        "ready",
        48,
    )  # all frames; the model takes up to 100
    answers = []
    for _ in range(2):
        session = video_chatgpt.open_session(video["id"])
        given = [video_chatgpt.ask(session, question) for question in ("What happens?", "And then?")]
        assert [answer["usage"]["completion_tokens"] for answer in given] == [8, 8]
        answers.append([answer["content"] for answer in given])
    assert answers[0] == answers[1]
    assert answers[0][0] != answers[0][1]


def test_video_chatgpt_takes_fewer_frames_of_a_short_video(video_chatgpt: RunningService, tmp_path: Path) -> None:
    video = video_chatgpt.upload(write_video(tmp_path / "short.mp4", numbered_pictures(3)))
    assert [frame["index"] for frame in video["frames"]] == [0, 1, 1]
    session = video_chatgpt.open_session(video["id"], frames={"count": 2})
    answer = video_chatgpt.ask(session, "What happens?")
    assert [len(clip["frames"]) for clip in answer["frames"]] == [2]


def test_video_chatgpt_is_served_from_the_folder_that_its_published_parts_were_converted_to(
    tmp_path: Path, drawn: Path
) -> None:
    published, mine = publish_video_chatgpt(tmp_path / "published"), tmp_path / "mine"
    converted = CliRunner().invoke(app, ["convert", str(published), "--to", str(mine), "--family", "video-chatgpt"])
    assert converted.exit_code == 0, converted.output
    with running(tmp_path / "data", "--family", "video-chatgpt", "--checkpoint", str(mine)) as service:
        (model,) = service.client.get("/v1/models").json()["data"]
        assert (model["id"], model["family"], model["num_video_tokens"]) == ("mine", "video-chatgpt", 109)
        session = service.open_session(service.upload(drawn)["id"])
        assert service.ask(session, "What happens?")["usage"]["completion_tokens"] == 8

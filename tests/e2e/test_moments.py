"""The moments of a model with a time axis, from the weights to HTTP, the terminal and the page."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.clips import h264_mp4
from tests.e2e.browser import Browser
from tests.e2e.fleet import Replica
from tests.e2e.test_page import HAS_ENDED, LAST, ask
from tests.pointing import pointing_checkpoint
from tests.running import RunningService, eventually, running
from tests.typing_at import reeltalk_at_a_terminal

WORDS = ("It", "is", "red", "from", "25", "to", "49,", "blue", "50", "and", "99.")
TEXT = " ".join(WORDS)
FIRST, SECOND = TEXT.index("from"), TEXT.index("50")


@pytest.fixture(scope="module")
def pointing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningService]:
    """A service whose model answers every question with `TEXT`."""
    folder = tmp_path_factory.mktemp("pointing")
    checkpoint = pointing_checkpoint(folder / "checkpoint", WORDS)
    with running(folder / "data", "--family", "vtimellm", "--checkpoint", str(checkpoint)) as service:
        yield service


def expected(video_id: str, start: float, end: float) -> list[dict[str, Any]]:
    """The moments of `TEXT` if the model saw the video from second `start` to `end`."""
    quarter = (end - start) / 4
    near = [start + quarter, start + 2 * quarter, end]
    return [
        {
            "video_id": video_id,
            "start": pytest.approx(near[0]),
            "end": pytest.approx(near[1]),
            "text_start": FIRST,
            "text_end": FIRST + len("from 25 to 49"),
        },
        {
            "video_id": video_id,
            "start": pytest.approx(near[1]),
            "end": pytest.approx(near[2]),
            "text_start": SECOND,
            "text_end": SECOND + len("50 and 99"),
        },
    ]


def test_every_form_of_an_answer_has_its_moments(pointing: RunningService, drawn: Path) -> None:
    video = pointing.upload(drawn)
    session = pointing.open_session(video["id"])
    moments = expected(video["id"], 0.0, video["duration"])
    message = pointing.ask(session, "When is it red?", max_tokens=64)
    assert (message["content"], message["moments"]) == (TEXT, moments)
    with pointing.stream(session, "And then?", max_tokens=64) as events:
        *_, done = events
    assert done.data["moments"] == moments
    answer = pointing.client.get(f"/v1/answers/{done.data['id']}").json()
    assert answer["message"]["moments"] == moments
    history = pointing.client.get(f"/v1/sessions/{session}/messages").json()["data"]
    assert [each["moments"] for each in history] == [None, moments, None, moments]


def test_moments_lie_in_the_interval_of_the_session(pointing: RunningService, drawn: Path) -> None:
    video = pointing.upload(drawn)
    session = pointing.open_session(video["id"], frames={"start": 0.5, "end": 1.5})
    assert pointing.ask(session, "When?", max_tokens=64)["moments"] == expected(video["id"], 0.5, 1.5)


def test_of_two_videos_the_first_is_meant(pointing: RunningService, drawn: Path, tmp_path: Path) -> None:
    first = pointing.upload(h264_mp4(tmp_path / "longer.mp4", frames=72))
    second = pointing.upload(drawn)
    session = pointing.open_session(first["id"], second["id"])
    assert pointing.ask(session, "When?", max_tokens=64)["moments"] == expected(first["id"], 0.0, first["duration"])


def test_an_answer_that_was_cut_has_the_moments_of_its_text(pointing: RunningService, drawn: Path) -> None:
    session = pointing.open_session(pointing.upload(drawn)["id"])
    message = pointing.ask(session, "When?", max_tokens=8)
    assert message["content"].endswith("49, blue")
    assert [moment["text_start"] for moment in message["moments"]] == [FIRST]
    assert pointing.ask(session, "When?", max_tokens=3)["moments"] == []


def test_a_chat_completion_has_the_moments_of_each_choice(pointing: RunningService, drawn: Path) -> None:
    video = pointing.upload(drawn)
    content = [{"type": "video_url", "video_url": {"url": video["id"]}}, {"type": "text", "text": "When?"}]
    [model] = pointing.client.get("/v1/models").json()["data"]
    body = {"model": model["id"], "messages": [{"role": "user", "content": content}], "n": 2, "max_tokens": 64}
    completion = pointing.client.post("/v1/chat/completions", json=body).json()
    assert [choice["moments"] for choice in completion["choices"]] == 2 * [expected(video["id"], 0, video["duration"])]


def test_a_successor_finds_the_same_moments(tmp_path: Path, drawn: Path) -> None:
    words = (*(f"w{number}" for number in range(600)), *WORDS)
    checkpoint = pointing_checkpoint(tmp_path / "checkpoint", words)
    arguments = ("--family", "vtimellm", "--checkpoint", str(checkpoint))
    replica = Replica(tmp_path / "data", {"REELTALK_LEASE_SECONDS": "2"}, arguments)
    replica.start()
    try:
        eventually(lambda: replica.is_ready, timeout=120)
        service = replica.service
        video = service.upload(drawn)
        session = service.open_session(video["id"])
        with service.stream(session, "When?", max_tokens=1000) as events:
            answer_id = next(events).data["id"]
            next(event for event in events if event.name == "delta")
            replica.kill()
        replica.start()
        eventually(lambda: replica.is_ready, timeout=120)
        answer = {"status": "in_progress"}

        def has_ended() -> bool:
            answer.update(replica.service.client.get(f"/v1/answers/{answer_id}").json())
            return answer["status"] != "in_progress"

        eventually(has_ended, timeout=60)
        message: Any = answer["message"]
        assert message["content"] == " ".join(words)
        shift = len(" ".join(words)) - len(TEXT)
        moments = expected(video["id"], 0.0, video["duration"])
        for moment in moments:
            moment["text_start"] += shift
            moment["text_end"] += shift
        assert message["moments"] == moments
        assert replica.metric("reeltalk_answer_takeovers_total") == 1
    finally:
        replica.stop()


def test_a_terminal_shows_the_times_and_a_pipe_only_the_answer(pointing: RunningService, drawn: Path) -> None:
    question = ["ask", str(drawn), "When?", "--max-tokens", "64"]
    with reeltalk_at_a_terminal(question, {"REELTALK_URL": pointing.url}) as terminal:
        assert terminal.wait() == 0
    assert "0:00–0:01  from 25 to 49" in terminal.shown
    assert "0:01–0:02  50 and 99" in terminal.shown
    command = [sys.executable, "-m", "service.commands.main", *question, "--server", pointing.url]
    piped = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert (piped.stdout, piped.stderr) == (f"{TEXT}\n", "")


def test_the_page_shows_the_times_and_moves_the_player(browser: Browser, pointing: RunningService, drawn: Path) -> None:
    session = pointing.open_session(pointing.upload(drawn)["id"])
    with browser.page(f"{pointing.url}/#{session}") as page:
        page.wait_for("document.querySelector('.frames')?.checkVisibility()")
        ask(page, "When is it red?")
        page.wait_for(HAS_ENDED)
        named = f"[...{LAST}.querySelectorAll('.moment')].map((button) => [button.textContent, button.dataset.time])"
        shown = [["from 25 to 49", "0:00–0:01"], ["50 and 99", "0:01–0:02"]]
        assert page.evaluate(named) == shown
        page.click(".moment:last-of-type")
        page.wait_for("Math.abs(document.querySelector('.clip video').currentTime - 1) < 0.05")
        page.reload()
        page.wait_for("document.querySelectorAll('.moment').length === 2")
        assert page.evaluate(named) == shown
        assert page.complaints == []

"""`reeltalk ask`, `chat`, `videos`, `sessions` and `bench` with a real service, in a pipe and in a terminal."""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from service.commands.demo import SAMPLE
from tests.clips import h264_mp4
from tests.e2e.fleet import Replica
from tests.running import RunningService, eventually, running
from tests.talkative import talkative_checkpoint
from tests.typing_at import Terminal, reeltalk_at_a_terminal

WHICH_WAY = "Which way does the circle move?"
RIGHT = "The red circle moves right.\n"


def command(*arguments: str | Path) -> list[str]:
    return [sys.executable, "-m", "service.commands.main", *map(str, arguments)]


def reeltalk(url: str, *arguments: str | Path, typed: str = "", **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(*arguments),
        env={**os.environ, "REELTALK_URL": url, **environ},
        input=typed,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@contextmanager
def reading(url: str, *arguments: str | Path) -> Iterator[subprocess.Popen[str]]:
    """Run the command with its stdout in a pipe."""
    process = subprocess.Popen(
        command(*arguments),
        env={**os.environ, "REELTALK_URL": url},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def session_of(printed: str) -> str:
    found = re.search(r"ses_[0-9a-f]{32}", printed)
    assert found is not None, printed
    return found[0]


# -- in a pipe


def test_only_the_answer_is_printed(service: RunningService) -> None:
    done = reeltalk(service.url, "ask", SAMPLE, WHICH_WAY)
    assert (done.returncode, done.stdout, done.stderr) == (0, RIGHT, "")


def test_a_question_from_stdin_is_answered_as_json_and_its_session_continued(
    service: RunningService,
) -> None:
    done = reeltalk(service.url, "ask", SAMPLE, "-", "--json", "--frames", "8", typed=WHICH_WAY + "\n")
    answer = json.loads(done.stdout)
    assert answer["message"]["content"] == RIGHT.strip()
    assert (answer["object"], answer["status"]) == ("answer", "completed")
    assert len(answer["message"]["frames"][0]["frames"]) == 8

    session = answer["session_id"]
    assert reeltalk(service.url, "ask", "--session", session, "How big is it?").stdout == "The red circle is large.\n"
    shown = reeltalk(service.url, "sessions", "show", session).stdout
    assert f"> {WHICH_WAY}\n{RIGHT}> How big is it?\nThe red circle is large.\n" in shown


def test_events_are_printed_as_lines(service: RunningService) -> None:
    done = reeltalk(service.url, "ask", SAMPLE, WHICH_WAY, "--events", "--seed", "1", "--temperature", "0")
    printed = [json.loads(line) for line in done.stdout.splitlines()]
    assert [event["id"] for event in printed] == list(range(1, len(printed) + 1))
    assert [printed[0]["event"], printed[-1]["event"]] == ["answer", "done"]
    assert "".join(event["data"]["text"] for event in printed if event["event"] == "delta") == RIGHT.strip()


def test_models_are_listed_and_one_is_named(service: RunningService) -> None:
    titles, row = reeltalk(service.url, "models").stdout.splitlines()
    assert titles.split()[:3] == ["model", "state", "family"]
    assert row.startswith("tiny")
    assert "ready" in row.split()
    assert "videochat" in row.split()
    listed = json.loads(reeltalk(service.url, "models", "list", "--json").stdout)
    assert listed == service.client.get("/v1/models").json()
    assert reeltalk(service.url, "ask", SAMPLE, WHICH_WAY, "--model", "tiny").stdout == RIGHT


def test_a_large_file_is_uploaded_resumably(service: RunningService, tmp_path: Path) -> None:
    padding = 17 << 20
    large = tmp_path / "large.mp4"
    large.write_bytes(SAMPLE.read_bytes() + padding.to_bytes(4) + b"free" + bytes(padding - 8))
    assert reeltalk(service.url, "ask", large, WHICH_WAY).stdout == RIGHT
    assert any("/v1/uploads/{upload_id}" in line for line in service.output)


def test_records_are_listed_shown_and_deleted(service: RunningService, tmp_path: Path) -> None:
    clip = h264_mp4(tmp_path / "kept.mp4", frames=48, width=96)
    video = json.loads(reeltalk(service.url, "ask", clip, "What?", "--json").stdout)
    session = video["session_id"]
    [video_id] = json.loads(reeltalk(service.url, "sessions", "show", session, "--json").stdout)["video_ids"]

    listed = reeltalk(service.url, "videos").stdout.splitlines()
    assert listed[0].split() == ["id", "status", "length", "size", "uploaded", "name"]
    assert any(line.startswith(f"{video_id}  ready") and line.endswith("kept.mp4") for line in listed)
    newest = json.loads(reeltalk(service.url, "sessions", "list", "--limit", "1", "--json").stdout)["data"]
    assert [found["id"] for found in newest] == [session]
    assert "2.0" in reeltalk(service.url, "videos", "show", video_id).stdout

    erased = reeltalk(service.url, "videos", "delete", video_id, "--json")
    assert json.loads(erased.stdout) == {"id": video_id, "object": "video", "deleted": True}
    gone = reeltalk(service.url, "sessions", "show", session)
    assert (gone.returncode, gone.stderr) == (6, "reeltalk: There is no session with this id.\n")


@pytest.mark.parametrize(
    ("arguments", "status", "sentence"),
    [
        (["ask", __file__, "What?"], 4, "The file is not a video of a known kind."),
        (["ask", "vid_" + "0" * 32, "What?"], 6, "There is no video with this id."),
        (["chat", "--session", "ses_" + "0" * 32], 6, "There is no session with this id."),
        (["ask", "https://example.org/a.mp4", "What?"], 4, "This server does not fetch URLs; upload the file instead."),
        (["ask", SAMPLE, "What?", "--start", "3", "--end", "2"], 4, "end"),
        (["ask", SAMPLE, "What?", "--model", "large"], 6, "The service does not serve large; it serves tiny."),
        (["ask", "What?", "--model", "tiny"], 2, "tiny answers questions about a video; name a VIDEO."),
        (["chat", "--model", "tiny"], 2, "tiny answers questions about a video; name a VIDEO."),
    ],
    ids=["text file", "unknown video", "unknown session", "url", "frames", "model", "ask no video", "chat no video"],
)
def test_a_refusal_is_reported_in_one_sentence(
    service: RunningService, arguments: list[str | Path], status: int, sentence: str
) -> None:
    done = reeltalk(service.url, *arguments)
    assert (done.returncode, done.stdout) == (status, "")
    assert done.stderr.startswith("reeltalk: ")
    assert sentence in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_service_with_keys_requires_and_accepts_one(tmp_path: Path) -> None:
    here = ("--data-dir", tmp_path / "data")
    key = subprocess.run(command("keys", "add", "me", *here), capture_output=True, text=True, timeout=60, check=True)
    with running(tmp_path / "data") as service:
        missing = reeltalk(service.url, "ask", SAMPLE, WHICH_WAY)
        assert (missing.returncode, missing.stdout) == (5, "")
        assert "key" in missing.stderr
        assert "Traceback" not in missing.stderr
        assert reeltalk(service.url, "videos", "--api-key", "rtk_wrong").returncode == 5
        assert reeltalk(service.url, "ask", SAMPLE, WHICH_WAY, REELTALK_API_KEY=key.stdout.strip()).stdout == RIGHT


def test_a_load_is_measured_and_leaves_nothing_behind(service: RunningService) -> None:
    before = service.client.get("/v1/sessions?limit=100").json()
    options = ["--streams", "1,2", "--answers", "2", "--max-tokens", "8"]
    printed = json.loads(reeltalk(service.url, "bench", *options, "--json").stdout)
    assert printed["model"] == "tiny"
    assert [(row["streams"], row["answers"], row["failed"]) for row in printed["loads"]] == [(1, 2, {}), (2, 4, {})]
    for row in printed["loads"]:
        assert 0 < row["time_to_first_token_ms"]["p50"] <= row["time_to_first_token_ms"]["p99"]
        assert row["tokens_per_second"] == pytest.approx(8 * row["answers"] / row["seconds"], rel=0.01)
    assert service.client.get("/v1/sessions?limit=100").json() == before


# -- interrupted, and connections lost


def num_cancels(service: RunningService) -> int:
    return sum("/cancel" in line for line in list(service.output))


def test_ctrl_c_stops_the_answer_on_the_service(talkative: RunningService) -> None:
    before = num_cancels(talkative)
    with reading(talkative.url, "ask", SAMPLE, "What?", "--events", "--max-tokens", "1500") as process:
        assert process.stdout is not None
        lines = [json.loads(next(process.stdout)) for _ in range(12)]
        process.send_signal(signal.SIGINT)
        process.stdout.read()
        assert process.wait(60) == 130
    assert num_cancels(talkative) == before + 1
    answer = f"/v1/answers/{lines[0]['data']['id']}"
    eventually(lambda: talkative.client.get(answer).json()["status"] == "cancelled")


def test_a_closed_pipe_stops_the_answer_on_the_service(talkative: RunningService) -> None:
    before = num_cancels(talkative)
    with reading(talkative.url, "ask", SAMPLE, "What?", "--max-tokens", "1500") as process:
        assert process.stdout is not None
        assert process.stdout.read(10)
        process.stdout.close()
        assert process.wait(60) == 1
        assert process.stderr is not None
        assert process.stderr.read() == ""
    assert num_cancels(talkative) == before + 1


@pytest.mark.timeout(400)
def test_an_answer_continues_after_the_service_was_killed_and_restarted(tmp_path: Path) -> None:
    checkpoint = talkative_checkpoint(tmp_path / "checkpoint")
    replica = Replica(tmp_path / "data", {"REELTALK_LEASE_SECONDS": "2"}, ("--checkpoint", str(checkpoint)))
    replica.start()
    try:
        eventually(lambda: replica.is_ready, timeout=120)
        url = f"http://127.0.0.1:{replica.port}"
        question = ("ask", SAMPLE, "What?", "--max-tokens", "400", "--temperature", "1", "--seed", "7")
        undisturbed = reeltalk(url, *question).stdout
        with reading(url, *question) as process:
            assert process.stdout is not None
            begun = process.stdout.read(40)
            replica.kill()
            assert len(begun) < len(undisturbed) / 2, "it was killed in mid-answer"
            replica.start()
            rest = process.stdout.read()
            assert process.wait(120) == 0
        assert begun + rest == undisturbed
    finally:
        replica.stop()


# -- in a terminal


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    return {"XDG_STATE_HOME": str(tmp_path)}


def test_a_terminal_shows_the_upload_the_answer_and_how_to_continue(
    service: RunningService, yoga: Path, environ: dict[str, str], tmp_path: Path
) -> None:
    unseen = tmp_path / "unseen.mp4"
    unseen.write_bytes(yoga.read_bytes() + b"\0\0\0\x08free")  # an empty box changes the hash but not the video
    with reeltalk_at_a_terminal(["ask", str(unseen), WHICH_WAY], {"REELTALK_URL": service.url, **environ}) as terminal:
        assert terminal.wait() == 0
    assert "upload" in terminal.shown
    assert "/776.2 kB" in terminal.shown
    assert re.search(r"decode .*100%", terminal.shown)
    assert "encode" in terminal.shown
    assert "I only know clips of drawn shapes." in terminal.shown
    assert "tokens, the first after" in terminal.shown
    assert f"reeltalk ask --session {session_of(terminal.shown)}" in terminal.shown


def test_a_chat_has_a_history_and_can_be_continued(service: RunningService, environ: dict[str, str]) -> None:
    environ["REELTALK_URL"] = service.url
    with reeltalk_at_a_terminal(["chat", str(SAMPLE)], environ) as terminal:
        terminal.expect("> ")
        terminal.type(f"{WHICH_WAY}\n")
        terminal.expect("The red circle moves right.")
        terminal.expect("> ")
        terminal.type("How big is it?\n")
        terminal.expect("The red circle is large.")
        terminal.expect("> ")
        terminal.type("/frames\n")
        terminal.expect("at 0.21, 0.71")
        terminal.expect("> ")
        terminal.type("/model\n")
        terminal.expect("Model tiny.")
        terminal.expect("> ")
        terminal.type("/model large\n")
        terminal.expect("The service does not serve large; it serves tiny.")
        terminal.expect("> ")
        terminal.type("/nonsense\n")
        terminal.expect("There is no command /nonsense.")
        terminal.expect("> ")
        terminal.type("\x04")
        assert terminal.wait() == 0
    session = session_of(terminal.shown)

    with reeltalk_at_a_terminal(["chat", "--session", session], environ) as terminal:
        terminal.expect("The red circle is large.")
        terminal.expect("Ctrl-C stops an answer.")
        terminal.expect("> ")
        terminal.type("\x1b[A" * 5 + "\n")  # five lines up
        terminal.expect("The red circle is large.")
        terminal.expect("> ")
        terminal.type("/quit\n")
        assert terminal.wait() == 0
    assert (Path(environ["XDG_STATE_HOME"]) / "reeltalk" / "history").stat().st_mode & 0o077 == 0


def stop_in_mid_answer(terminal: Terminal) -> None:
    """Press Ctrl-C during an answer, which stops the answer, then Ctrl-D, which ends the chat."""
    shown = len(terminal.raw)
    while len(terminal.raw) < shown + 20:
        terminal.read()
    terminal.type("\x03")
    terminal.expect("Stopped.")
    terminal.expect("> ")
    terminal.type("\x04")
    assert terminal.wait() == 0


def test_ctrl_c_stops_an_answer_and_not_the_chat(talkative: RunningService, environ: dict[str, str]) -> None:
    before = num_cancels(talkative)
    environ["REELTALK_URL"] = talkative.url
    with reeltalk_at_a_terminal(["chat", str(SAMPLE), "--max-tokens", "1500"], environ) as terminal:
        terminal.expect("> ")
        terminal.type("What?\n")
        terminal.expect("What?\r\n")
        stop_in_mid_answer(terminal)
    assert num_cancels(talkative) == before + 1


def test_a_running_answer_is_printed_first_when_its_session_is_continued(
    talkative: RunningService, environ: dict[str, str]
) -> None:
    before = num_cancels(talkative)
    environ["REELTALK_URL"] = talkative.url
    session_id = talkative.open_session(talkative.upload(SAMPLE)["id"])
    with talkative.stream(session_id, "Tell me all.", max_tokens=1500) as events:
        next(events)
        with reeltalk_at_a_terminal(["chat", "--session", session_id], environ) as terminal:
            terminal.expect("> Tell me all.")
            stop_in_mid_answer(terminal)
    assert num_cancels(talkative) == before + 1

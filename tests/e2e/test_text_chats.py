"""Conversations with a model that sees no videos, in the terminal and on the page."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from service.commands.demo import SAMPLE
from tests.e2e.browser import Browser
from tests.e2e.test_page import HAS_ENDED, ask
from tests.running import RunningService, running

NAME = "tiny"  # the default name of a model


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningService]:
    """A service of a language model whose answers are noise."""
    with running(tmp_path_factory.mktemp("reader"), "--family", "mobillama") as service:
        yield service


def reeltalk(url: str, *arguments: str, typed: str = "") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "service.commands.main", *arguments]
    environ = {**os.environ, "REELTALK_URL": url}
    return subprocess.run(command, env=environ, input=typed, capture_output=True, text=True, timeout=120, check=False)


def answered(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    assert done.returncode == 0, done.stderr
    message: dict[str, Any] = json.loads(done.stdout)["message"]
    return message


def test_a_question_without_a_video_is_answered(reader: RunningService) -> None:
    done = reeltalk(reader.url, "ask", "Hello?", "--model", NAME, "--max-tokens", "5", "--json")
    message = answered(done)
    assert (message["usage"]["completion_tokens"], message["frames"], message["moments"]) == (5, [], None)
    session = json.loads(done.stdout)["session_id"]
    assert answered(reeltalk(reader.url, "ask", "--session", session, "And?", "--max-tokens", "3", "--json"))
    chat = reeltalk(reader.url, "chat", "--model", NAME, "--max-tokens", "2", "--json", typed="One?\nTwo?\n")
    messages = [json.loads(line)["message"] for line in chat.stdout.splitlines()]
    assert [message["finish_reason"] for message in messages] == ["length", "length"]


def test_without_a_service_too() -> None:
    arguments = ("--local", "--family", "mobillama", "--max-tokens", "4", "--json")
    message = answered(reeltalk("http://127.0.0.1:9", "ask", "Hello?", *arguments))
    assert (message["usage"]["completion_tokens"], message["frames"], message["moments"]) == (4, [], None)


@pytest.mark.parametrize(
    ("arguments", "status", "sentence"),
    [
        (["ask", str(SAMPLE), "Hello?", "--model", NAME], 2, f"{NAME} cannot see videos; omit the VIDEO."),
        (["ask", str(SAMPLE), "Hello?"], 4, "sees no videos"),
        (
            ["ask", str(SAMPLE), "Hello?", "--local", "--family", "mobillama"],
            2,
            "The family mobillama cannot see videos; omit the VIDEO.",
        ),
    ],
    ids=["named", "default", "local"],
)
def test_a_video_is_refused_in_one_sentence(
    reader: RunningService, arguments: list[str], status: int, sentence: str
) -> None:
    done = reeltalk(reader.url, *arguments)
    assert (done.returncode, done.stdout) == (status, "")
    assert sentence in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_the_page_chats_without_a_video(browser: Browser, reader: RunningService) -> None:
    with browser.page(f"{reader.url}/") as page:
        page.wait_for("document.querySelector('#text-start').checkVisibility()")
        assert not page.evaluate("document.querySelector('#drop').checkVisibility()")
        page.evaluate("localStorage.setItem('reeltalk:settings', '{\"max_tokens\": 8}')")
        page.reload()
        page.click("#text-start")
        page.wait_for("location.hash && document.querySelector('#question').checkVisibility()")
        ask(page, "Name three colours.")
        page.wait_for(HAS_ENDED)
        page.reload()
        page.wait_for("document.querySelector('.asked')?.textContent === 'Name three colours.'")
        assert not page.evaluate("document.querySelector('#clips').checkVisibility()")

        first = page.evaluate("location.hash")
        page.point_at(f".sidebar a[href='{first}']")  # shows the buttons
        page.click(f".sidebar li:has(a[href='{first}']) button")
        page.wait_for(f"location.hash !== '{first}' && !document.querySelector('.turn')")
        page.wait_for("document.querySelector('.sidebar [aria-current] .name').textContent.includes('without a video')")
        assert page.complaints == []

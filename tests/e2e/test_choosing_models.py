"""The page and the terminal with several models: each conversation has the model that was chosen for it."""

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

from service.commands.demo import SAMPLE
from tests.e2e.browser import Browser
from tests.e2e.test_page import HAS_ENDED, ask
from tests.e2e.test_page_models import choose
from tests.running import RunningService, eventually, running
from tests.typing_at import reeltalk_at_a_terminal

FLAGS = (
    *("--model", "tiny=videochat:"),
    *("--model", "chatgpt=video-chatgpt:"),
    *("--model", "reader=mobillama:"),
    *("--model", "broken=videochat:/nowhere"),
)
STATES = {"tiny": "ready", "chatgpt": "ready", "reader": "ready", "broken": "broken"}
SHOWN_MODEL = (
    "document.querySelector('#answerer').checkVisibility() && document.querySelector('#answerer b').textContent"
)


@pytest.fixture(scope="module")
def several(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningService]:
    with running(tmp_path_factory.mktemp("several"), *FLAGS, REELTALK_SHUTDOWN_TIMEOUT="60") as service:
        eventually(lambda: states(service) == STATES, timeout=120)
        yield service


def states(service: RunningService) -> dict[str, str]:
    return {model["id"]: model["state"] for model in service.client.get("/v1/models").json()["data"]}


def reeltalk(url: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "service.commands.main", *arguments]
    environ = {**os.environ, "REELTALK_URL": url}
    return subprocess.run(command, env=environ, capture_output=True, text=True, timeout=120, check=False)


def test_each_conversation_on_the_page_has_its_model(browser: Browser, several: RunningService) -> None:
    with browser.page(f"{several.url}/") as page:
        page.wait_for("document.querySelector('#model-choice').checkVisibility()")
        options = page.evaluate("[...document.querySelectorAll('#model-select option')].map(o => [o.text, o.disabled])")
        assert options == [["tiny", False], ["chatgpt", False], ["reader", False], ["broken (broken)", True]]
        page.evaluate("localStorage.setItem('reeltalk:settings', '{\"max_tokens\": 8}')")
        page.reload()
        page.wait_for("document.querySelector('#model-choice').checkVisibility()")

        choose(page, "chatgpt")
        page.click("[data-sample='shapes.mp4']")
        page.wait_for("location.hash && !document.querySelector('.preparing').checkVisibility()")
        ask(page, "What happens?")
        page.wait_for(HAS_ENDED)
        page.wait_for("document.querySelectorAll('.frames li').length === 96")  # as many as the clip has
        assert page.evaluate(SHOWN_MODEL) == "chatgpt"
        watched = page.evaluate("location.hash.slice(1)")

        page.click("#new-video")
        choose(page, "reader")
        page.click("#text-start")
        page.wait_for(f"location.hash && {SHOWN_MODEL} === 'reader'")
        ask(page, "Name three colours.")
        page.wait_for(HAS_ENDED)
        read = page.evaluate("location.hash.slice(1)")

        page.click(f".sidebar a[href='#{watched}']")
        page.wait_for(f"{SHOWN_MODEL} === 'chatgpt' && document.querySelectorAll('.frames li').length === 96")
        assert page.evaluate("document.querySelector('#model-select').value") == "reader", "of the next conversation"
        models = [several.client.get(f"/v1/sessions/{session}").json()["model"] for session in (watched, read)]
        assert models == ["chatgpt", "reader"]
        assert page.complaints == []


def test_the_terminal_names_lists_and_changes_models(several: RunningService) -> None:
    rows = [line.split() for line in reeltalk(several.url, "models").stdout.splitlines()[1:]]
    assert [row[0] for row in rows] == list(STATES)
    assert rows[0][:3] == ["tiny", "(default)", "ready"]
    assert [row[1] for row in rows[1:]] == ["ready", "ready", "broken"]
    assert reeltalk(several.url, "ask", "Hello?", "--model", "reader", "--max-tokens", "4").returncode == 0
    broken = reeltalk(several.url, "ask", str(SAMPLE), "Which way?", "--model", "broken")
    assert broken.returncode == 7
    assert broken.stderr.startswith("reeltalk: The model 'broken' cannot be loaded: /nowhere/config.json")

    with reeltalk_at_a_terminal(["chat", str(SAMPLE), "--max-tokens", "8"], {"REELTALK_URL": several.url}) as terminal:
        terminal.expect("> ")
        terminal.type("/model chatgpt\n")
        terminal.expect("Model chatgpt. The conversation begins again.")
        terminal.expect("> ")
        terminal.type("/model reader\n")
        terminal.expect("reader cannot see videos; omit the VIDEO.")
        terminal.expect("> ")
        terminal.type("/model\n")
        terminal.expect("Model chatgpt.")
        terminal.type("\x04")
        assert terminal.wait() == 0

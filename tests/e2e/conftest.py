"""Fixtures: a shared service for tests that do not change its state, and clips to upload."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import node_clients
from tests.clips import h264_mp4
from tests.e2e.browser import NAMES, Browser, find_browser, running_browser
from tests.published import clip
from tests.running import RunningService, running
from tests.talkative import talkative_checkpoint


@pytest.fixture(scope="session")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningService]:
    with running(tmp_path_factory.mktemp("data"), REELTALK_DISCONNECT_GRACE="1") as service:
        yield service


@pytest.fixture(scope="session")
def talkative(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningService]:
    """A service whose answers continue until they are stopped or reach `max_tokens`."""
    folder = tmp_path_factory.mktemp("talkative")
    checkpoint = talkative_checkpoint(folder / "checkpoint")
    with running(folder / "data", "--checkpoint", str(checkpoint), REELTALK_DISCONNECT_GRACE="1") as service:
        yield service


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """A headless Chromium; skips the test if none is installed."""
    path = find_browser()
    if path is None:
        pytest.skip(f"no Chromium on PATH (looked for {', '.join(NAMES)})")
    with running_browser(path, tmp_path_factory.mktemp("profile")) as browser:
        yield browser


@pytest.fixture
def yoga() -> Path:
    return clip("yoga.mp4")


@pytest.fixture(scope="session")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clip of two seconds that other test modules do not upload."""
    return h264_mp4(tmp_path_factory.mktemp("clips") / "drawn.mp4", frames=48)


@pytest.fixture
def session(service: RunningService, drawn: Path) -> str:
    """A new session about the drawn clip."""
    return service.open_session(service.upload(drawn)["id"])


@pytest.fixture(scope="session")
def node(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the Node packages."""
    return node_clients.install(tmp_path_factory.mktemp("node"))

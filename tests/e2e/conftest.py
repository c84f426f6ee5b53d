"""One service for all tests that leave it as they found it, and clips to upload."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import node_clients
from tests.clips import h264_mp4
from tests.published import clip
from tests.running import RunningService, running
from tests.talkative import talkative_checkpoint


@pytest.fixture(scope="session")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningService]:
    with running(tmp_path_factory.mktemp("data"), REELTALK_DISCONNECT_GRACE="1") as service:
        yield service


@pytest.fixture(scope="session")
def talkative(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningService]:
    """A service whose answers go on until they are stopped or cut."""
    folder = tmp_path_factory.mktemp("talkative")
    checkpoint = talkative_checkpoint(folder / "checkpoint")
    with running(folder / "data", "--checkpoint", str(checkpoint), REELTALK_DISCONNECT_GRACE="1") as service:
        yield service


@pytest.fixture
def yoga() -> Path:
    return clip("yoga.mp4")


@pytest.fixture(scope="session")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clip of two seconds that nobody else uploads."""
    return h264_mp4(tmp_path_factory.mktemp("clips") / "drawn.mp4", frames=48)


@pytest.fixture
def session(service: RunningService, drawn: Path) -> str:
    """A fresh session about the drawn clip."""
    return service.open_session(service.upload(drawn)["id"])


@pytest.fixture(scope="session")
def node(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with Node's clients in it."""
    return node_clients.install(tmp_path_factory.mktemp("node"))

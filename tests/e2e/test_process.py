"""`reeltalk serve` reports its readiness, does not import torch, and needs constant memory; `reeltalk demo` runs."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx2
import pytest

from tests.running import RunningService, eventually, running, started


def test_a_ready_service_answers_questions(tmp_path: Path, drawn: Path) -> None:
    with started(tmp_path / "data") as service:
        seen = []
        while 200 not in seen:
            seen.append(_status(service, "/readyz"))
            time.sleep(0.02)
        service.wait_until_ready()
        assert 503 in seen, "it could be reached before it was ready"
        assert _status(service, "/healthz") == 200
        answer = service.ask(service.open_session(service.upload(drawn)["id"]), "Are you there?")
        assert answer["finish_reason"] in {"stop", "length"}


def _status(service: RunningService, path: str) -> int:
    """The status of a request to the service; 0 while it does not listen."""
    for line in list(service.output):
        if "Uvicorn running on " in line:
            url = line.split("Uvicorn running on ")[1].split()[0]
            return httpx2.get(url + path).status_code
    return 0


def test_a_model_that_cannot_be_loaded_is_reported_in_one_sentence(tmp_path: Path) -> None:
    with started(tmp_path / "data", "--checkpoint", str(tmp_path)) as service:
        eventually(lambda: any(line.startswith("reeltalk: ") for line in list(service.output)), timeout=60)
        assert f"reeltalk: {tmp_path}/config.json does not exist or is not a JSON file.\n" in service.output
        while service.process.poll() is None:  # Ctrl-C while the service ends by itself
            service.process.send_signal(signal.SIGINT)
            time.sleep(0.002)
    assert service.process.returncode == 1
    assert not any("Traceback" in line for line in service.output)


def test_the_api_process_never_loads_torch(service: RunningService, session: str) -> None:
    service.ask(session, "What is it?")
    loaded = Path(f"/proc/{service.process.pid}/maps").read_text()
    worker = Path(f"/proc/{service.child('service.workers')}/maps").read_text()
    assert "libtorch" in worker
    assert "libtorch" not in loaded


@pytest.mark.parametrize("form", [False, True], ids=["raw", "form"])
def test_a_large_upload_needs_no_more_memory_than_a_small_one(
    service: RunningService, form: bool, tmp_path: Path
) -> None:
    path = tmp_path / "large.mp4"
    with path.open("wb") as file:
        file.truncate(300 << 20)
    before = _peak_memory(service)
    with path.open("rb") as file:
        if form:
            reply = service.client.post("/v1/videos", files={"file": ("large.mp4", file, "video/mp4")})
        else:
            reply = service.client.post("/v1/videos", content=file, headers={"Content-Type": "video/mp4"})
    assert reply.json()["error"]["code"] == "not_a_video"  # 300 MB of zeros, received whole
    assert _peak_memory(service) - before < 32 << 20


def _peak_memory(service: RunningService) -> int:
    status = Path(f"/proc/{service.process.pid}/status").read_text()
    [line] = [line for line in status.splitlines() if line.startswith("VmHWM:")]
    return int(line.split()[1]) * 1024


def test_the_demo_shows_a_conversation_and_ends(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "service.commands.main", "demo"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "ready  100%" in done.stdout
    content = done.stdout.replace("\n", " ")
    for answer in (
        "There are two objects: a large red circle that moves right, and a small blue square that moves left.",
        "The red circle moves right.",
        "The red circle is large.",
    ):
        assert answer.removesuffix(".") in content
    assert list(tmp_path.iterdir()) == []


def test_messages_survive_a_restart(tmp_path: Path, drawn: Path) -> None:
    with running(tmp_path / "data") as service:
        video = service.upload(drawn)
        session_id = service.open_session(video["id"])
        content = service.ask(session_id, "What is it?", max_tokens=16)["content"]
    with running(tmp_path / "data") as service:
        assert service.client.get(f"/v1/videos/{video['id']}").json() == video
        messages = service.client.get(f"/v1/sessions/{session_id}/messages").json()["data"]
        assert [message["content"] for message in messages] == ["What is it?", content]
        assert service.ask(service.open_session(video["id"]), "What is it?", max_tokens=16)["content"] == content
        assert service.metric("reeltalk_video_encode_seconds_count") == 0

"""A real service survives hostile files: a small part of `python -m tests.e2e.hostile_files`."""

import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.hostile_files import CANARY, all_files, try_all
from tests.running import RunningService


def test_the_corpus_is_the_same_for_the_same_seed(tmp_path: Path) -> None:
    first = [(file.kind, file.name) for file in all_files(tmp_path, port=1, seed=6)]
    assert len(first) >= 300
    assert len({kind for kind, _ in first}) >= 8


PEAK = """
import asyncio, sys
from pathlib import Path
from tests.e2e.hostile_files import all_files, peaks_of_memory
folder = Path(sys.argv[1])
(folder / "canary.ts").write_bytes(b"")
files = list(all_files(folder, port=1, seed=8))
chosen = [file for file in files if file.kind == "huge picture" or file.name in ("wide.mp4", "swollen.webm")]
assert len(chosen) == 6
print(asyncio.run(peaks_of_memory(chosen + files[::60], folder))[-1][1])
"""


def test_a_decode_process_needs_no_more_memory_than_for_a_valid_file(tmp_path: Path) -> None:
    """Run in a separate process that has had no larger child."""
    done = subprocess.run(
        [sys.executable, "-c", PEAK, str(tmp_path)], capture_output=True, text=True, timeout=240, check=True
    )
    assert 30 < int(done.stdout.splitlines()[-1]) < 256, done.stdout


def test_hostile_files_are_refused_without_harm(service: RunningService, tmp_path: Path) -> None:
    (tmp_path / "canary.ts").write_bytes(CANARY * 1000)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(0.2)
        files = list(all_files(tmp_path, port=listener.getsockname()[1], seed=7))
        scripts = [file for file in files if file.kind == "script"][::10]
        findings = try_all(service, iter(files[::40] + scripts))
        with pytest.raises(TimeoutError):
            listener.accept()
    assert findings.breaches == []
    assert findings.outcomes["script"].keys() == {"415 not_a_video"}
    assert service.metric('reeltalk_decode_sandbox{layer="seccomp"}') in {0.0, 1.0}

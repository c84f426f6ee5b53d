"""The commands in the README work."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.running import RunningService

ROOT = Path(__file__).parents[2]


def test_the_commands_of_the_readme_run_as_pasted(service: RunningService) -> None:
    if shutil.which("curl") is None:
        pytest.skip("no curl on this machine")
    [script] = re.findall(r"^```bash\n(.*?)^```$", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL)
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script.replace("http://127.0.0.1:8000", service.url)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    expected = ("event: ready", "event: answer", "event: delta", "event: done", '"role":"assistant"', '"deleted":true')
    for part in expected:
        assert part in done.stdout
    assert re.search(r"reeltalk_video_encode_seconds_count [1-9]", done.stdout)

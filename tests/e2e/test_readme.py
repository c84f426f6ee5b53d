"""The README's commands and its program run as printed."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.running import RunningService

ROOT = Path(__file__).parents[2]
SERVED_AT = "http://127.0.0.1:8000"


def test_the_commands_of_the_readme_run_as_pasted(service: RunningService) -> None:
    if shutil.which("curl") is None:
        pytest.skip("no curl on this machine")
    [script] = re.findall(r"^```bash\n(.*?)^```$", readme(), re.MULTILINE | re.DOTALL)
    done = run("bash", "-euo", "pipefail", "-c", script.replace(SERVED_AT, service.url))
    assert done.returncode == 0, done.stderr
    for part in (
        "event: ready",
        "event: answer",
        "event: delta",
        "event: done",
        '"role":"assistant"',
        '"deleted":true',
    ):
        assert part in done.stdout
    assert re.search(r'reeltalk_video_encode_seconds_count{model_name="tiny"} [1-9]', done.stdout)


def test_the_program_of_the_readme_prints_what_is_printed(service: RunningService) -> None:
    [(program, printed)] = re.findall(
        r"^```python\n(.*?)^```$\n+^```text\n(.*?)^```$", readme(), re.MULTILINE | re.DOTALL
    )
    done = run(sys.executable, "-c", program.replace(SERVED_AT, service.url))
    assert done.stdout == printed, done.stderr


def test_the_readme_is_short_enough_to_be_read() -> None:
    assert len(readme().splitlines()) < 200


def readme() -> str:
    return (ROOT / "README.md").read_text()


def run(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)

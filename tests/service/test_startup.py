"""The command starts light, and says in one sentence why it does not."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from service.store.redis_server import embedded_redis

HEAVY = {"torch", "transformers"}


@pytest.mark.parametrize(
    "module", ["service.app", "service.server", "service.commands.main", "service.commands.openapi"]
)
def test_the_api_process_imports_neither_torch_nor_transformers(module: str) -> None:
    script = f"import sys, {module}\nprint(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, timeout=60, check=True)
    loaded = {name.partition(".")[0] for name in done.stdout.split()}
    assert "service" in loaded
    assert loaded & HEAVY == set()


def test_the_worker_is_the_door_to_torch() -> None:
    """Without this the claim above could hold because nobody imports torch any more."""
    source = (Path(__file__).parents[2] / "service" / "workers" / "worker.py").read_text()
    assert "import torch" in source


def reeltalk(*arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "service.commands.main", *arguments]
    return subprocess.run(
        command, env={**os.environ, **environ}, capture_output=True, text=True, timeout=60, check=False
    )


@pytest.mark.parametrize(
    ("environ", "sentence"),
    [
        ({"REELTALK_PORTS": "1"}, "REELTALK_PORTS is not a setting"),
        ({"REELTALK_PORT": "no"}, "REELTALK_PORT: "),
        ({"REELTALK_HOST": "0.0.0.0"}, "Refusing to listen on 0.0.0.0"),  # noqa: S104
        ({"REELTALK_HOST": "192.0.2.1"}, "reeltalk keys add"),
    ],
)
def test_a_configuration_that_cannot_be_used_is_told_in_one_sentence(
    environ: dict[str, str], sentence: str, tmp_path: Path
) -> None:
    done = reeltalk("serve", "--data-dir", str(tmp_path), **environ)
    assert done.returncode != 0
    assert sentence in done.stderr
    assert len((done.stdout + done.stderr).splitlines()) == 1


def test_a_second_service_in_the_same_directory_ends_with_one_sentence(tmp_path: Path) -> None:
    with embedded_redis(tmp_path):
        done = reeltalk("serve", "--port", "0", "--data-dir", str(tmp_path))
    assert done.returncode != 0
    said = done.stdout + done.stderr
    assert "Another Reeltalk uses the data directory" in said
    assert "Traceback" not in said


def test_every_setting_is_listed_with_its_default() -> None:
    listed = reeltalk("settings").stdout.splitlines()
    assert "REELTALK_PORT=8000" in listed
    assert "REELTALK_REDIS_URL=" in listed
    assert all(line.startswith("REELTALK_") for line in listed)


def test_keys_are_made_listed_and_revoked_and_shown_once(tmp_path: Path) -> None:
    here = ("--data-dir", str(tmp_path))
    made = reeltalk("keys", "add", "Prometheus", "--scope", "metrics", "--days", "30", *here)
    token, key_id = made.stdout.strip(), made.stderr.split(",")[0]
    assert re.fullmatch(r"rtk_[0-9a-f]{32}_[0-9a-f]{64}", token)
    listed = reeltalk("keys", "list", *here).stdout
    assert token[37:] not in listed
    assert listed.splitlines()[1].split()[:3] == [key_id, "local", "metrics"]
    assert "valid" in listed
    assert reeltalk("keys", "revoke", key_id, *here).returncode == 0
    assert "revoked" in reeltalk("keys", "list", *here).stdout
    missing = reeltalk("keys", "revoke", "key_0", *here)
    assert (missing.returncode, missing.stderr) == (2, "reeltalk: There is no key key_0.\n")
    assert reeltalk("keys", "add", "x", "--tenant", "../b", *here).returncode == 2

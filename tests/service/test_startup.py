"""The command line starts without torch, and reports an invalid configuration in one sentence."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from service.settings import Settings, load_settings
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


def test_the_worker_imports_torch() -> None:
    """Guards the test above, which would also pass if no module imported torch any more."""
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
        ({"REELTALK_CHECKPOINT": "/nowhere"}, "The default model 'nowhere' cannot be loaded: there is no folder"),
        ({"REELTALK_HOST": "192.0.2.1"}, "reeltalk keys add"),
    ],
)
def test_an_invalid_configuration_is_reported_in_one_sentence(
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
    printed = done.stdout + done.stderr
    assert "Another Reeltalk uses the data directory" in printed
    assert "Traceback" not in printed


def test_every_setting_is_listed_with_its_description_and_default() -> None:
    *entries, end = reeltalk("settings").stdout.split("\n\n")
    assert "# The TCP port to listen on; 0 takes a free one.\nREELTALK_PORT=8000" in entries
    assert end == ""
    assert [entry.rpartition("\n")[2].partition("=")[0] for entry in entries] == [
        "REELTALK_" + name.upper() for name in Settings.model_fields
    ]
    assert all(line.startswith("# ") for entry in entries for line in entry.splitlines()[:-1])
    assert all(len(entry.splitlines()) > 1 for entry in entries), "a setting has no description"
    values = [entry.rpartition("\n")[2].partition("=") for entry in entries]
    assert load_settings(environ={name: value for name, _, value in values}) == Settings()


def test_keys_are_added_listed_and_revoked_and_shown_only_once(tmp_path: Path) -> None:
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

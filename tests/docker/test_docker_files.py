"""The files in docker/ are valid and agree with the settings of the service."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from service.settings import Settings
from tests.docker.replica import running_replica

DOCKER = Path(__file__).parents[2] / "docker"
TOOLS = Path(sys.executable).parent
DEFAULTS = Settings()


def run(*command: str | Path) -> str:
    """Run a tool that must succeed; returns its output."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def seconds(text: str, name: str) -> int:
    found = re.search(rf"\b{name}:? (\d+)s", text)
    assert found, f"{name} is not set"
    return int(found[1])


def test_the_dockerfile_passes_its_linter() -> None:
    hadolint = TOOLS / "hadolint"
    if not hadolint.exists():
        pytest.skip("hadolint has no wheel for this platform")
    run(hadolint, DOCKER / "Dockerfile")


@pytest.mark.parametrize("file", sorted(DOCKER.glob("compose*.yaml")), ids=lambda file: file.name)
def test_a_compose_file_follows_the_compose_specification(file: Path) -> None:
    run(TOOLS / "check-jsonschema", "--builtin-schema", "vendor.compose-spec", file)


def test_nginx_accepts_the_balancers_configuration(tmp_path: Path) -> None:
    nginx = shutil.which("nginx")
    if nginx is None:
        pytest.skip("nginx is not installed")
    resolvable = re.sub(r"replica-\d:8000", "127.0.0.1:8000", (DOCKER / "nginx.conf").read_text())
    (tmp_path / "nginx.conf").write_text(resolvable.replace("/tmp/", f"{tmp_path}/"))  # noqa: S108
    assert "successful" in run(nginx, "-t", "-p", tmp_path, "-c", tmp_path / "nginx.conf")


def test_compose_kills_no_replica_that_is_still_draining() -> None:
    compose = (DOCKER / "compose.yaml").read_text()
    assert seconds(compose, "stop_grace_period") > DEFAULTS.drain_notice + DEFAULTS.shutdown_timeout


def test_the_balancer_waits_longer_than_an_answer_may_take() -> None:
    assert seconds((DOCKER / "nginx.conf").read_text(), "proxy_read_timeout") > DEFAULTS.answer_timeout


@pytest.mark.parametrize("file", ["Dockerfile", "compose.yaml"])
def test_every_variable_of_the_image_is_a_setting(file: str) -> None:
    named = set(re.findall(r"\bREELTALK_([A-Z_]+)[=:]", (DOCKER / file).read_text()))
    assert named
    assert named <= {field.upper() for field in Settings.model_fields}


def test_the_health_check_passes_while_the_service_runs_and_fails_after_its_end() -> None:
    found = re.search(r"HEALTHCHECK .*\\\n\s*CMD (\[.*\])", (DOCKER / "Dockerfile").read_text())
    assert found
    command = [sys.executable, *json.loads(found[1])[1:]]

    with running_replica("one") as replica:
        environment = os.environ | {"REELTALK_PORT": str(replica.server_port)}
        assert subprocess.run(command, env=environment, timeout=20, check=False).returncode == 0
    gone = subprocess.run(command, env=environment, timeout=20, capture_output=True, check=False)
    assert gone.returncode != 0

"""Schemathesis finds no difference between the OpenAPI document and a running service.

The suite runs a small, seeded part; `REELTALK_CONTRACT_EXAMPLES=15 pytest tests/e2e/test_contract.py -s` runs more than
two thousand cases and prints their number.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.test_tenants import make_key
from tests.running import running

ROOT = Path(__file__).parents[2]
NUM_EXAMPLES = os.environ.get("REELTALK_CONTRACT_EXAMPLES", "1")


@pytest.mark.timeout(1800)
def test_generated_requests_find_no_difference_between_contract_and_service(tmp_path: Path) -> None:
    data_dir = tmp_path / "data"
    with running(data_dir) as service:
        _, key = make_key(
            data_dir,
            "contract",
            "--requests-per-minute",
            "1000000",
            "--max-priority",
            "9",
            "--scope",
            "use",
            "--scope",
            "metrics",
        )
        ran = subprocess.run(
            [
                *(sys.executable, "-m", "schemathesis.cli", "--config-file", str(ROOT / "tests" / "contract.toml")),
                *("run", f"{service.url}/openapi.json", "--max-examples", NUM_EXAMPLES),
                *("--seed", "1", "--continue-on-failure", "--no-color"),
                *("--header", f"Authorization: Bearer {key}"),
                *("--exclude-path-regex", "^/admin"),  # a drained service refuses all requests
            ],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            timeout=1700,
            check=False,
        )
    counted = re.search(r"(\d+) generated", ran.stdout)
    assert counted, ran.stdout + ran.stderr
    print(f"{counted[1]} cases")
    assert ran.returncode == 0, ran.stdout
    assert int(counted[1]) > 500

"""Errors of `pull` when the Hub cannot be used."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from model.checkpoints.hub import pull
from model.weights import WeightsError


def test_the_error_without_a_network_says_what_to_do(tmp_path: Path) -> None:
    code = "import sys; from pathlib import Path; from model.checkpoints.hub import pull\n"
    code += "pull('owner/name', Path(sys.argv[1]), revision=None)"
    closed = os.environ | {"HF_ENDPOINT": "http://127.0.0.1:9", "NO_PROXY": "127.0.0.1"}
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path], env=closed, capture_output=True, text=True, timeout=60, check=False
    )
    assert "WeightsError: The Hugging Face Hub cannot be reached from here. Check the network" in done.stderr


def test_the_error_for_an_invalid_name_gives_an_example(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"is not a repository name of the Hub; names look like"):
        pull("not a name", tmp_path, revision=None)

"""Installs the Node packages of tests/node once for each run; skips a test if that is not possible."""

import shutil
import subprocess
from pathlib import Path

import pytest

_SOURCE = Path(__file__).parent / "node"


def install(folder: Path) -> Path:
    """Install the packages in a subfolder of `folder` and return it; skips the test on failure."""
    if not (shutil.which("node") and shutil.which("npm")):
        pytest.skip("needs node and npm")
    shutil.copy(_SOURCE / "package.json", folder)
    command = ["npm", "install", "--no-package-lock", "--no-audit", "--no-fund"]
    try:
        installed = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120, check=False)
    except subprocess.TimeoutExpired:
        pytest.skip("npm does not reach its registry")
    if installed.returncode != 0:
        pytest.skip(f"npm cannot install the packages: {installed.stderr[-300:]}")
    return folder


def run(folder: Path, script: str, *arguments: str) -> str:
    """Run a script in the folder of the packages; returns what it prints."""
    path = folder / "script.mjs"
    path.write_text(script)
    command = ["node", str(path), *arguments]
    ran = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout

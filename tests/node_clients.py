"""Node and the packages of tests/node, installed once a run; where they cannot be had, a test is skipped."""

import shutil
import subprocess
from pathlib import Path

import pytest

_SOURCE = Path(__file__).parent / "node"


def install(folder: Path) -> Path:
    """A folder with the packages in it, or a skipped test."""
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
    """What a script prints; it runs beside the packages."""
    path = folder / "script.mjs"
    path.write_text(script)
    command = ["node", str(path), *arguments]
    ran = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout

"""Where the published clips and the numbers measured on them lie; without them, a test is skipped and says so."""

import os
from pathlib import Path

import pytest

GOLDEN = Path(os.environ.get("REELTALK_GOLDEN", Path(__file__).resolve().parents[2] / "shared" / "golden"))


def golden(name: str) -> Path:
    """The folder of one set of reference numbers."""
    folder = GOLDEN / name
    if not folder.is_dir():
        pytest.skip(f"no reference numbers at {folder}: set REELTALK_GOLDEN")
    return folder


def clip(name: str) -> Path:
    """A clip of the original demo; they lie in `videos`, beside the reference numbers."""
    path = GOLDEN.parent / "videos" / name
    if not path.is_file():
        pytest.skip(f"no clip at {path}: set REELTALK_GOLDEN to a folder with `videos` beside it")
    return path

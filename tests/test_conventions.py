"""The conventions of the code that a program can check: imports between packages, file names, docstrings."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = ("benchmarks", "examples", "model", "service", "tests", "training")
VAGUE_NAMES = {"utils", "util", "helpers", "helper", "misc", "common", "base", "manager", "factory"}


def sources() -> Iterator[Path]:
    """Every Python file of the project, relative to its root."""
    for folder in FOLDERS:
        yield from (path.relative_to(ROOT) for path in sorted((ROOT / folder).rglob("*.py")))


def has_code(path: Path) -> bool:
    """Whether a file is not empty, as `__init__.py` is in the folders of tests."""
    return bool((ROOT / path).read_text().strip())


def test_packages_import_only_what_the_contracts_in_pyproject_allow() -> None:
    linter = Path(sys.executable).parent / "lint-imports"
    checked = subprocess.run([linter, "--no-cache"], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert checked.returncode == 0, checked.stdout + checked.stderr


@pytest.mark.parametrize("path", [path for path in sources() if has_code(path)], ids=str)
def test_a_file_begins_with_a_docstring_whose_first_line_is_a_sentence(path: Path) -> None:
    opening = (ast.get_docstring(ast.parse((ROOT / path).read_text())) or "").partition("\n")[0]
    assert opening.endswith(".")
    assert len(opening.split()) > 1


def test_no_file_or_folder_has_a_vague_name() -> None:
    words = {path: set(path.with_suffix("").name.split("_")) | set(path.parent.parts) for path in sources()}
    assert len(words) > len(FOLDERS)
    assert {str(path) for path, parts in words.items() if parts & VAGUE_NAMES} == set()

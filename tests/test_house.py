"""The house rules that a program can check: rooms, names, first lines."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROOMS = ("benchmarks", "examples", "model", "service", "tests", "training")
EVADING_NAMES = {"utils", "util", "helpers", "helper", "misc", "common", "base", "manager", "factory"}


def sources() -> Iterator[Path]:
    """Every Python file of the project, relative to its root."""
    for room in ROOMS:
        yield from (path.relative_to(ROOT) for path in sorted((ROOT / room).rglob("*.py")))


def says_something(path: Path) -> bool:
    """All but the empty `__init__.py` of a folder of tests."""
    return bool((ROOT / path).read_text().strip())


def test_the_rooms_import_only_what_they_may() -> None:
    linter = Path(sys.executable).parent / "lint-imports"
    checked = subprocess.run([linter, "--no-cache"], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert checked.returncode == 0, checked.stdout + checked.stderr


@pytest.mark.parametrize("path", [path for path in sources() if says_something(path)], ids=str)
def test_a_file_opens_with_a_sentence_that_says_what_it_is(path: Path) -> None:
    opening = (ast.get_docstring(ast.parse((ROOT / path).read_text())) or "").partition("\n")[0]
    assert opening.endswith(".")
    assert len(opening.split()) > 1


def test_no_name_evades_saying_what_is_inside() -> None:
    words = {path: set(path.with_suffix("").name.split("_")) | set(path.parent.parts) for path in sources()}
    assert len(words) > len(ROOMS)
    assert {str(path) for path, parts in words.items() if parts & EVADING_NAMES} == set()

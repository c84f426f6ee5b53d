"""Log lines contain tracebacks but no text of users."""

import subprocess
import sys

import pytest

_FAILING = """
import structlog
from service.observability.logging import configure_logging

def ask(content):
    raise RuntimeError("it broke")

configure_logging(level="info", style={style!r})
try:
    ask("who is " + "she")
except RuntimeError:
    structlog.get_logger().exception("answer_failed")
"""


@pytest.mark.parametrize("style", ["text", "json"])
def test_a_traceback_shows_functions_and_no_local_variables(style: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _FAILING.format(style=style)], capture_output=True, text=True, check=True, timeout=60
    )
    assert "answer_failed" in done.stderr
    assert "in ask" in done.stderr
    assert "RuntimeError: it broke" in done.stderr
    assert "who is she" not in done.stderr

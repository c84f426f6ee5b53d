"""Where tests run beside each other, those that start services go one after another: they need time and share some."""

import signal
from typing import Any

import pytest

# A shell that starts the suite in the background has Ctrl-C ignored, here and in every child; tests send it themselves.
signal.signal(signal.SIGINT, signal.default_int_handler)

SERVICES = ("tests/e2e/", "tests/test_docs.py")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """What `pytest -n` asks for; a machine that lacks pytest-xdist runs one test after the other."""
    from xdist.scheduler import LoadScopeScheduling

    class ServicesInTurn(LoadScopeScheduling):  # type: ignore[misc]
        """Each test is given to whoever is free; those with services all to one process."""

        def _split_scope(self, nodeid: str) -> str:
            return "services" if nodeid.startswith(SERVICES) else nodeid

    return ServicesInTurn(config, log)

"""Configures parallel runs: tests that start services run in one process, because they need CPU time and share some."""

import signal
from typing import Any

import pytest

# Restore Ctrl-C, which a shell ignores in background processes and their children; tests send it to services.
signal.signal(signal.SIGINT, signal.default_int_handler)

SERVICES = ("tests/e2e/", "tests/test_docs.py")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Provide the scheduler for `pytest -n`; without pytest-xdist the hook is not called."""
    from xdist.scheduler import LoadScopeScheduling

    class ServicesInOneProcess(LoadScopeScheduling):  # type: ignore[misc]
        """Distributes tests to any free process, except those with services, which all run in one."""

        def _split_scope(self, nodeid: str) -> str:
            return "services" if nodeid.startswith(SERVICES) else nodeid

    return ServicesInOneProcess(config, log)

"""A worker process, seen from the API process: send commands, receive reports, notice its death."""

import asyncio
import contextlib
import multiprocessing
import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from multiprocessing.connection import Connection

from service.workers.protocol import Command, Report, Stop, WorkerConfig
from service.workers.specs import WorkerSpec

_STOP_TIMEOUT = 5.0
_ENVIRONMENT = {"LRU_CACHE_CAPACITY": "64", "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "64"}
"""Sizes of two caches in which torch's matrix kernels keep what they prepare for each shape; the default is 1,024.

An engine's steps have a thousand shapes, few of which come again. With the defaults, a process used 850 MB after 360
questions of many lengths; with these sizes 450 MB, in the same time. The operator's environment takes precedence.
"""


class WorkerProcess:
    """A child process that runs `service.workers`.

    The callbacks run on the event loop on which this object is made. Two threads move messages, so that neither a busy
    worker nor a full pipe blocks the event loop.
    """

    def __init__(
        self,
        config: WorkerConfig,
        *,
        on_report: Callable[["WorkerProcess", Report], None],
        on_death: Callable[["WorkerProcess"], None],
    ) -> None:
        self.config = config
        self._loop = asyncio.get_running_loop()
        self._last_report_at = time.monotonic()
        self._on_report = on_report
        self._on_death = on_death
        self._commands: queue.SimpleQueue[Command | WorkerConfig] = queue.SimpleQueue()
        self._connection, worker_end = multiprocessing.Pipe()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "service.workers", str(worker_end.fileno()), f"{self.spec.role}:{self.number}"],
            pass_fds=[worker_end.fileno()],
            stdin=subprocess.DEVNULL,
            env=_ENVIRONMENT | os.environ,
            start_new_session=True,  # Ctrl-C reaches only the service, which then stops its children in order
        )
        worker_end.close()
        self._commands.put(config)
        for target in (self._write, self._read):
            threading.Thread(target=target, name=f"worker-{self.pid}", daemon=True).start()

    def __repr__(self) -> str:
        return f"WorkerProcess({self.number}, {self.spec.role}, pid={self.pid})"

    @property
    def number(self) -> int:
        """The worker's index; a process that replaces another one has the same."""
        return self.config.number

    @property
    def spec(self) -> WorkerSpec:
        """The worker's role and device."""
        return self.config.spec

    @property
    def seconds_since_report(self) -> float:
        """Seconds since the last report, or since the start."""
        return time.monotonic() - self._last_report_at

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    @property
    def exit_status(self) -> int | None:
        """The exit status, or minus the number of the signal that ended the process; None while it runs."""
        return self._process.returncode

    def send(self, command: Command) -> None:
        """Send a command without blocking. Commands to a dead worker are dropped; `on_death` reports the death."""
        self._commands.put(command)

    def kill(self) -> None:
        """End the process at once."""
        self._process.kill()

    async def stop(self) -> None:
        """Ask the process to end; kill it if it does not end in time."""
        self.send(Stop())
        try:
            await asyncio.to_thread(self._process.wait, _STOP_TIMEOUT)
        except subprocess.TimeoutExpired:
            self.kill()
            await asyncio.to_thread(self._process.wait)

    def _write(self) -> None:
        while True:
            command = self._commands.get()
            try:
                self._connection.send(command)
            except OSError:
                return  # `_read` notices the death
            if isinstance(command, Stop):
                return

    def _read(self) -> None:
        connection: Connection[Report, Command] = self._connection
        while True:
            try:
                report = connection.recv()
            except (EOFError, OSError):
                break
            self._last_report_at = time.monotonic()
            self._call_soon(self._on_report, report)
        self._process.kill()  # a worker cannot work without its pipe
        self._process.wait()
        self._commands.put(Stop())  # ends `_write`
        self._call_soon(self._on_death)

    def _call_soon(self, callback: Callable[..., None], *args: object) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(callback, self, *args)

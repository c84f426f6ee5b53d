"""One worker process as its parent sees it: commands go in, reports come out, its end is noticed."""

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

_STOP_TIMEOUT = 5.0
_ENVIRONMENT = {"LRU_CACHE_CAPACITY": "64", "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "64"}
"""What torch's matrix kernels keep of the shapes they have seen: 1,024 by default, in either of two caches.

An engine has steps of a thousand shapes and comes back to few. Without these bounds 360 questions of many lengths left
850 MB in a process, with them 450, in the same time. An operator's own value wins.
"""


class WorkerProcess:
    """A child that runs `service.workers`. All callbacks run on the event loop that made this object.

    `place` is what it is for. Two threads move messages, so that neither a busy worker nor a full pipe ever holds up
    the event loop.
    """

    def __init__(
        self,
        config: WorkerConfig,
        *,
        on_report: Callable[["WorkerProcess", Report], None],
        on_death: Callable[["WorkerProcess"], None],
    ) -> None:
        self.number = config.number
        self.place = config.place
        self._loop = asyncio.get_running_loop()
        self._last_heard = time.monotonic()
        self._on_report = on_report
        self._on_death = on_death
        self._outbox: queue.SimpleQueue[Command | WorkerConfig] = queue.SimpleQueue()
        self._connection, far_end = multiprocessing.Pipe()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "service.workers", str(far_end.fileno()), f"{self.place.role}:{self.number}"],
            pass_fds=[far_end.fileno()],
            stdin=subprocess.DEVNULL,
            env=_ENVIRONMENT | os.environ,
            start_new_session=True,  # Ctrl-C reaches the service alone, which then ends its children in order
        )
        far_end.close()
        self._outbox.put(config)
        for target in (self._write, self._read):
            threading.Thread(target=target, name=f"worker-{self.pid}", daemon=True).start()

    def __repr__(self) -> str:
        return f"WorkerProcess({self.number}, {self.place.role}, pid={self.pid})"

    @property
    def seconds_silent(self) -> float:
        """Since anything came from the process."""
        return time.monotonic() - self._last_heard

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    @property
    def exit_status(self) -> int | None:
        """How the process ended: its exit status, or less the signal that killed it; None while it runs."""
        return self._process.returncode

    def send(self, command: Command) -> None:
        """Hand over a command; never blocks. A command to a dead worker is dropped: its death is reported."""
        self._outbox.put(command)

    def kill(self) -> None:
        """End the process at once."""
        self._process.kill()

    async def stop(self) -> None:
        """Ask the worker to end, and end it if it does not."""
        self.send(Stop())
        try:
            await asyncio.to_thread(self._process.wait, _STOP_TIMEOUT)
        except subprocess.TimeoutExpired:
            self.kill()
            await asyncio.to_thread(self._process.wait)

    def _write(self) -> None:
        while True:
            command = self._outbox.get()
            try:
                self._connection.send(command)
            except OSError:
                return  # the reader notices the death
            if isinstance(command, Stop):
                return

    def _read(self) -> None:
        connection: Connection[Report, Command] = self._connection
        while True:
            try:
                report = connection.recv()
            except (EOFError, OSError):
                break
            self._last_heard = time.monotonic()
            self._call_soon(self._on_report, report)
        self._process.kill()  # a worker without its pipe is of no use
        self._process.wait()
        self._outbox.put(Stop())
        self._call_soon(self._on_death)

    def _call_soon(self, callback: Callable[..., None], *args: object) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody is left to tell
            self._loop.call_soon_threadsafe(callback, self, *args)

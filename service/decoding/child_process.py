"""One decode child, as its parent sees it: start it, send it the request, read its replies, kill and reap it."""

import asyncio
import os
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from model.video.spec import VideoErrorCode, VideoFacts
from service.decoding.protocol import (
    PREFIX,
    DecodeProgress,
    DecodeReply,
    DecodeRequest,
    Probed,
    ProtocolViolation,
    Rejected,
    Sampled,
    read_lengths,
    read_reply,
    write_request,
)

DecodeEvent = Probed | DecodeProgress

ROOT = Path(__file__).resolve().parents[2]
"""The folder from which children import `service` and `model`."""
ENVIRONMENT = ("PATH", "PYTHONPATH", "LD_LIBRARY_PATH", "LANG", "LC_ALL", "SYSTEMROOT")
"""The environment variables that are passed on to a child: none that may hold a secret."""
READ_AHEAD = 1 << 20
"""Bytes of a child's replies that are buffered in this process before the child has to wait."""
EXIT_TIMEOUT = 1.0
"""Seconds for a child that has closed its output to exit."""
REAP_TIMEOUT = 10.0
"""Seconds for a killed child to be reaped before it is left to the operating system."""


class VideoRejected(Exception):
    """The file cannot be used; code and message are those of a `VideoError`."""

    def __init__(self, code: VideoErrorCode, message: str) -> None:
        super().__init__(message)
        self.code: VideoErrorCode = code


class ChildProcess:
    """A decode child, which decodes one upload and is then killed."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    @classmethod
    async def start(cls) -> "ChildProcess":
        """Start a child; it imports its libraries and waits for a request.

        Raises:
            OSError: the operating system starts no process.
        """
        pipe = asyncio.subprocess.PIPE
        # One thread: with more, OpenBLAS would reserve more address space than the child may have.
        return cls(
            await start_module("service.decoding.child", stdin=pipe, stdout=pipe, extra={"OPENBLAS_NUM_THREADS": "1"})
        )

    @property
    def returncode(self) -> int | None:
        """The exit status, negative for a signal; None while the child runs."""
        return self._process.returncode

    async def decode(
        self, request: DecodeRequest, on_event: Callable[[DecodeEvent], None]
    ) -> tuple[VideoFacts, Sampled]:
        """Send the request and read the replies; `on_event` is called with the facts, then with each frame's progress.

        Raises:
            VideoRejected: the child rejects the file.
            ProtocolViolation: the child has exited, or sent an invalid reply or one out of order.
        """
        await self._send(write_request(request))
        facts: VideoFacts | None = None
        done = 0
        while True:
            match await self._receive(request):
                case Rejected(code=code, message=message):
                    raise VideoRejected(code, message)
                case Probed() as event if facts is None:
                    facts = event.facts
                    on_event(event)
                case DecodeProgress() as event if facts is not None and event.done == done + 1 <= event.total:
                    done = event.done
                    on_event(event)
                case Sampled() as sampled if facts is not None and max(sampled.indices) < facts.num_frames:
                    return facts, sampled
                case _:
                    raise ProtocolViolation("A reply is out of order.")

    async def _send(self, request: bytes) -> None:
        stdin = self._process.stdin
        assert stdin is not None
        try:
            stdin.write(request)
            await stdin.drain()
        except OSError:
            raise ProtocolViolation("The child has exited.") from None

    async def _receive(self, request: DecodeRequest) -> DecodeReply:
        stdout = self._process.stdout
        assert stdout is not None
        try:
            header, payload = read_lengths(await stdout.readexactly(PREFIX.size), request)
            return read_reply(await stdout.readexactly(header), await stdout.readexactly(payload), request)
        except (asyncio.IncompleteReadError, OSError):
            raise ProtocolViolation("The child has exited.") from None

    def cpu_seconds(self) -> float:
        """Return the CPU time that the child has used; 0 where the system does not report it."""
        try:
            stat = Path(f"/proc/{self._process.pid}/stat").read_text(encoding="ascii", errors="replace")
        except OSError:
            return 0.0
        fields = stat.rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    async def wait(self) -> None:
        """Wait until the child exits."""
        await self._process.wait()

    async def wait_briefly(self) -> None:
        """Wait until the child exits, for a moment at most."""
        with suppress(TimeoutError):
            await asyncio.wait_for(self._process.wait(), EXIT_TIMEOUT)

    def kill(self) -> None:
        """Kill the child and all processes of its group."""
        kill_group(self._process)

    async def reap(self) -> None:
        """Close the pipes and wait until a killed child is reaped, for `REAP_TIMEOUT` at most."""
        with suppress(TimeoutError):
            await asyncio.wait_for(self._process.communicate(), REAP_TIMEOUT)


async def start_module(
    module: str, *, stdin: int, stdout: int, extra: dict[str, str] | None = None
) -> asyncio.subprocess.Process:
    """Start a Python module in a session of its own, with the passed-on environment and `extra` variables.

    Raises:
        OSError: the operating system starts no process.
    """
    environment = {name: os.environ[name] for name in ENVIRONMENT if name in os.environ}
    return await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        module,
        stdin=stdin,
        stdout=stdout,
        limit=READ_AHEAD,
        start_new_session=True,
        cwd=ROOT,
        env=environment | (extra or {}),
    )


def kill_group(process: asyncio.subprocess.Process) -> None:
    """Kill a running process and all processes of its group."""
    if process.returncode is None:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)

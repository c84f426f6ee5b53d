"""Runs a command in a pseudo terminal for tests: types keys and reads the output."""

import codecs
import contextlib
import os
import pty
import re
import select
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

_CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\r")
_TIMEOUT = 60.0
_START = """
import fcntl, runpy, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)  # so that Ctrl-C becomes a signal
runpy.run_module("service.commands.main", run_name="__main__")
"""


@dataclass
class Terminal:
    """A command that runs in a pseudo terminal."""

    process: subprocess.Popen[bytes]
    screen: int
    raw: str = ""
    """The output so far, including control characters."""
    _position: int = 0
    _decoder: codecs.IncrementalDecoder = field(default_factory=codecs.getincrementaldecoder("utf-8"))

    @property
    def shown(self) -> str:
        """The output so far, as text."""
        return _CONTROL.sub("", self.raw)

    def expect(self, text: str) -> None:
        """Wait until the output contains `text` after the previously expected text."""
        deadline = time.monotonic() + _TIMEOUT
        while (found := self.raw.find(text, self._position)) < 0:
            assert time.monotonic() < deadline, f"{text!r} was not shown:\n{self.shown}"
            assert self.read(), f"it ended without {text!r}:\n{self.shown}"
        self._position = found + len(text)

    def type(self, text: str) -> None:
        """Type keys; `\\n` is the return key."""
        os.write(self.screen, text.encode())

    def wait(self) -> int:
        """Read until the command ends; returns its exit status."""
        while self.read():
            pass
        return self.process.wait(_TIMEOUT)

    def read(self) -> bool:
        """Read more output; returns False at its end."""
        if not select.select([self.screen], [], [], _TIMEOUT)[0]:
            raise TimeoutError(f"nothing is shown any more:\n{self.shown}")
        try:
            data = os.read(self.screen, 65536)
        except OSError:  # Linux reports the end of the output as EIO
            return False
        self.raw += self._decoder.decode(data)
        return bool(data)


@contextlib.contextmanager
def reeltalk_at_a_terminal(arguments: Sequence[str], environ: Mapping[str, str]) -> Iterator[Terminal]:
    """Run `reeltalk` in a pseudo terminal; kills it after the block if it has not ended."""
    screen, other_side = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", _START, *arguments],
        stdin=other_side,
        stdout=other_side,
        stderr=other_side,
        start_new_session=True,
        env={**os.environ, "COLUMNS": "100", "TERM": "xterm", **environ},
    )
    os.close(other_side)
    try:
        yield Terminal(process, screen)
    finally:
        process.kill()
        process.wait()
        os.close(screen)

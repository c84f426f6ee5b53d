"""A fleet for tests: two replicas behind nginx, one Redis, one directory of uploads; any of it can be killed."""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import httpx2
import redis

from service.store.redis_server import find_redis_server
from tests.docker.replica import running_balancer
from tests.running import RunningService, eventually

NGINX = shutil.which("nginx") or ""
_TIMEOUT = 60.0


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@dataclass
class RedisServer:
    """A redis-server whose file has every write that it acknowledged."""

    folder: Path
    process: subprocess.Popen[bytes] = field(init=False)

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True)
        self.start()

    @property
    def socket(self) -> Path:
        return self.folder / "redis.sock"

    def start(self) -> None:
        self.process = subprocess.Popen(
            [
                *(str(find_redis_server()), "--port", "0", "--unixsocket", str(self.socket), "--dir", str(self.folder)),
                *("--appendonly", "yes", "--appendfsync", "always", "--save", ""),
                *("--maxmemory-policy", "volatile-lru", "--logfile", str(self.folder / "redis.log")),
            ],
            start_new_session=True,
        )

    def wait_until_ready(self) -> None:
        eventually(self._answers, timeout=_TIMEOUT)

    def restart(self) -> None:
        """Kill it and start it again on its file."""
        self.kill()
        self.start()

    def kill(self) -> None:
        """SIGKILL, and wait for the end."""
        self.process.kill()
        self.process.wait()

    def _answers(self) -> bool:
        try:
            return bool(self.client().ping())
        except redis.RedisError:
            return False

    def client(self) -> "redis.Redis":
        return redis.Redis(unix_socket_path=str(self.socket), decode_responses=True)


@dataclass
class Replica:
    """One `reeltalk serve` that is always at the same port, however often it is started."""

    folder: Path
    environment: dict[str, str]
    arguments: tuple[str, ...] = ()
    port: int = field(default_factory=_free_port)
    service: RunningService = field(init=False)
    outputs: list[list[str]] = field(default_factory=list)
    """What each of its lives has written, line by line."""

    def start(self) -> None:
        command = [sys.executable, "-m", "service.commands.main", "serve", "--port", str(self.port)]
        process = subprocess.Popen(
            [*command, "--data-dir", str(self.folder), *self.arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, **self.environment},
            start_new_session=True,
        )
        self.service = RunningService(process, self.folder, url=f"http://127.0.0.1:{self.port}")
        self.outputs.append(self.service.output)

    def kill(self) -> None:
        """SIGKILL to the API process; its children end with it."""
        self.service.process.kill()
        self.service.process.wait()
        self.service.close()

    def stop(self, *, timeout: float = 60.0) -> int:
        """SIGTERM, and wait for the end."""
        self.service.process.send_signal(signal.SIGTERM)
        status = self.service.process.wait(timeout)
        self.service.close()
        return status

    def pids(self, part: str) -> list[int]:
        """Children whose command line has `part` in it."""
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            return [pid for pid, command in self.service.children().items() if part in command]
        return []

    @property
    def is_ready(self) -> bool:
        if self.service.process.poll() is not None:
            return False
        try:
            return httpx2.get(f"http://127.0.0.1:{self.port}/readyz", timeout=5).status_code == 200
        except httpx2.HTTPError:
            return False

    def metric(self, name: str) -> float:
        for line in httpx2.get(f"http://127.0.0.1:{self.port}/metrics", timeout=30).text.splitlines():
            if line.startswith((name + " ", name + "{")):
                return float(line.rsplit(" ", 1)[1])
        return 0.0


@dataclass
class Fleet:
    """What is running, and the balancer's socket."""

    redis: RedisServer
    replicas: tuple[Replica, Replica]
    balancer: Path
    media: Path

    def client(self) -> httpx2.Client:
        """A client of the balancer."""
        transport = httpx2.HTTPTransport(uds=str(self.balancer))
        return httpx2.Client(transport=transport, base_url="http://127.0.0.1", timeout=_TIMEOUT)

    def wait_until_ready(self, *, timeout: float = 180.0) -> None:
        eventually(lambda: all(replica.is_ready for replica in self.replicas), timeout=timeout)

    def num_encoded(self) -> float:
        """Videos that were encoded to the end by processes that live."""
        return sum(replica.metric("reeltalk_video_encode_seconds_count") for replica in self.replicas)


@contextlib.contextmanager
def running_fleet(folder: Path, *arguments: str, **environment: str) -> Iterator[Fleet]:
    """Start a fleet; every part of it answers."""
    with contextlib.ExitStack() as stack:
        server = RedisServer(folder / "redis")
        stack.callback(lambda: _end(server.process))
        server.wait_until_ready()
        media = folder / "media"
        shared = {
            "REELTALK_REDIS_URL": f"unix://{server.socket}",
            "REELTALK_MEDIA_DIR": str(media),
            "REELTALK_LEASE_SECONDS": "2",
            "REELTALK_DRAIN_NOTICE": "1",
            **environment,
        }
        replicas = Replica(folder / "a", shared, arguments), Replica(folder / "b", shared, arguments)
        for replica in replicas:
            replica.start()
            stack.callback(_end_replica, replica)
        ports = f"127.0.0.1:{replicas[0].port}", f"127.0.0.1:{replicas[1].port}"
        fleet = Fleet(server, replicas, stack.enter_context(running_balancer(NGINX, replicas=ports)), media)
        fleet.wait_until_ready()
        yield fleet


def _end_replica(replica: Replica) -> None:
    if replica.service.process.poll() is None:
        _end(replica.service.process, signal.SIGINT)  # which gives no notice to balancers
    replica.service.close()


def _end(process: "subprocess.Popen[bytes] | subprocess.Popen[str]", number: signal.Signals = signal.SIGTERM) -> None:
    process.send_signal(number)
    try:
        process.wait(30)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()

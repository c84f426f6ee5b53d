"""Runs two replicas behind nginx with one Redis and one directory of uploads; a test can kill any part."""

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
    """A redis-server that persists every acknowledged write."""

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
        """Kill the server and start it again with its data."""
        self.kill()
        self.start()

    def kill(self) -> None:
        """Send SIGKILL and wait until the process has ended."""
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
    """A `reeltalk serve` that keeps its port when it is started again."""

    folder: Path
    environment: dict[str, str]
    arguments: tuple[str, ...] = ()
    port: int = field(default_factory=_free_port)
    service: RunningService = field(init=False)
    outputs: list[list[str]] = field(default_factory=list)
    """The output of each run, line by line."""

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
        """Send SIGKILL to the API process; its children end too."""
        self.service.process.kill()
        self.service.process.wait()
        self.service.close()

    def stop(self, *, timeout: float = 60.0) -> int:
        """Send SIGTERM and wait until the process has ended."""
        self.service.process.send_signal(signal.SIGTERM)
        status = self.service.process.wait(timeout)
        self.service.close()
        return status

    def pids(self, part: str) -> list[int]:
        """The process ids of the children whose command line contains `part`."""
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
    """The running processes, and the socket of the balancer."""

    redis: RedisServer
    replicas: tuple[Replica, Replica]
    balancer: Path
    media: Path

    def client(self) -> httpx2.Client:
        """Create a client of the balancer."""
        transport = httpx2.HTTPTransport(uds=str(self.balancer))
        return httpx2.Client(transport=transport, base_url="http://127.0.0.1", timeout=_TIMEOUT)

    def wait_until_ready(self, *, timeout: float = 180.0) -> None:
        eventually(lambda: all(replica.is_ready for replica in self.replicas), timeout=timeout)

    def num_encoded(self) -> float:
        """The number of videos that the running processes have encoded."""
        return sum(replica.metric("reeltalk_video_encode_seconds_count") for replica in self.replicas)


@contextlib.contextmanager
def running_fleet(folder: Path, *arguments: str, **environment: str) -> Iterator[Fleet]:
    """Run a fleet; yields it when every part is ready."""
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
        _end(replica.service.process, signal.SIGINT)  # skips the notice to balancers
    replica.service.close()


def _end(process: "subprocess.Popen[bytes] | subprocess.Popen[str]", number: signal.Signals = signal.SIGTERM) -> None:
    process.send_signal(number)
    try:
        process.wait(30)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()

"""Fake replicas without a model, and a real nginx with the committed configuration in front of them."""

import contextlib
import os
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

CONFIGURATION = Path(__file__).parents[2] / "docker" / "nginx.conf"
WAIT = 10.0


class Replica(ThreadingHTTPServer):
    """A server that responds with its name; a test uses its events to stop in the middle of a stream."""

    daemon_threads = True

    def __init__(self, name: str) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.name = name
        self.first_event_read = threading.Event()
        self.first_bytes_seen = threading.Event()

    @property
    def address(self) -> str:
        """The address for nginx."""
        return f"127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: Replica

    def do_GET(self) -> None:
        if self.path.endswith("/events"):
            self._stream()
        else:
            self._respond(self.server.name)

    def do_POST(self) -> None:
        length = int(self.headers["Content-Length"])
        received = self.rfile.read(min(length, 5))
        self.server.first_bytes_seen.set()
        received += self.rfile.read(length - len(received))
        self._respond(f"{self.server.name} {len(received)}")

    def _respond(self, text: str) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())

    def _stream(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        self._chunk(b"data: first\n\n")
        last = (
            b"data: last\n\n" if self.server.first_event_read.wait(WAIT) else b"data: the first event was not read\n\n"
        )
        self._chunk(last)
        self._chunk(b"")

    def _chunk(self, data: bytes) -> None:
        self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - its name in http.server
        pass


@contextlib.contextmanager
def running_replica(name: str) -> Iterator[Replica]:
    """Run a fake replica as long as the block."""
    with Replica(name) as replica:
        threading.Thread(target=replica.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        try:
            yield replica
        finally:
            replica.shutdown()


@contextlib.contextmanager
def running_balancer(nginx: str, *, replicas: tuple[str, str]) -> Iterator[Path]:
    """Run nginx with the committed configuration, except for the replicas' addresses and a unix socket to listen on.

    Yields:
        The path of the socket.
    """
    with tempfile.TemporaryDirectory(prefix="balancer-") as folder:
        listens = Path(folder) / "listen"
        configuration = Path(folder) / "nginx.conf"
        configuration.write_text(
            CONFIGURATION.read_text()
            .replace("/tmp/", f"{folder}/")  # noqa: S108 - the text of the configuration
            .replace("replica-1:8000", replicas[0])
            .replace("replica-2:8000", replicas[1])
            .replace("listen 8080", f"listen unix:{listens}")
        )
        # Started by root, nginx would run its workers as the user nobody, who cannot enter the temporary directory.
        account = "user root;" if os.geteuid() == 0 else ""
        command = [nginx, "-c", str(configuration), "-p", folder, "-g", f"daemon off; {account}"]
        with subprocess.Popen(command) as process:
            try:
                _wait_for(listens, process)
                yield listens
            finally:
                process.terminate()
                process.wait(WAIT)


def _wait_for(socket: Path, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + WAIT
    while not socket.exists():
        assert process.poll() is None, "nginx refused the configuration"
        assert time.monotonic() < deadline, "nginx did not listen"
        time.sleep(0.01)

"""A stand-in for the Hugging Face Hub on loopback: the routes by which its client downloads repositories."""

import hashlib
import json
import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

COMMIT = "0" * 40
_INFO = re.compile(r"/api/models/([\w.-]+/[\w.-]+)(/revision/\w+)?")
_TREE = re.compile(r"/api/models/([\w.-]+/[\w.-]+)/tree/\w+")
_FILE = re.compile(r"/([\w.-]+/[\w.-]+)/resolve/\w+/(.+)")

Repositories = Mapping[str, Mapping[str, bytes]]
"""The files of each repository, by name."""


@contextmanager
def fake_hub(repositories: Repositories) -> Iterator[str]:
    """Serve repositories as long as the block; yields the value of `HF_ENDPOINT`."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._reply(with_body=True)

        def do_HEAD(self) -> None:
            self._reply(with_body=False)

        def _reply(self, *, with_body: bool) -> None:
            body = _content(repositories, self.path.partition("?")[0])
            self.send_response(404 if body is None else 200)
            self.send_header("Content-Length", str(len(body or b"")))
            self.send_header("ETag", hashlib.sha256(body or b"").hexdigest())
            self.send_header("X-Repo-Commit", COMMIT)
            self.end_headers()
            if with_body and body:
                self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002  the name that the class requires
            """Print nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _content(repositories: Repositories, path: str) -> bytes | None:
    """The body of the reply for a path; None if there is nothing."""
    if (info := _INFO.fullmatch(path)) and info[1] in repositories:
        siblings = [{"rfilename": name} for name in repositories[info[1]]]
        return json.dumps({"id": info[1], "sha": COMMIT, "siblings": siblings}).encode()
    if (tree := _TREE.fullmatch(path)) and tree[1] in repositories:
        return json.dumps([_entry(name, data) for name, data in repositories[tree[1]].items()]).encode()
    if file := _FILE.fullmatch(path):
        return repositories.get(file[1], {}).get(file[2])
    return None


def _entry(name: str, data: bytes) -> dict[str, object]:
    return {"type": "file", "path": name, "size": len(data), "oid": hashlib.sha256(data).hexdigest()}

"""`reeltalk demo`: the way of a user, over HTTP: a service of its own, an upload, streamed answers, the end."""

import json
import os
import re
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
from rich.console import Console

SAMPLE = Path(__file__).parent / "web" / "samples" / "shapes.mp4"
QUESTIONS = ("What happens in the video?", "Which way does the circle move?", "How big is it?")

_READY = re.compile(r"Reeltalk is ready at (http://\S+?)/ ")
_START_TIMEOUT = 120.0
_STOP_TIMEOUT = 30.0


def run(*, console: Console) -> int:
    """Show one conversation; returns the exit status."""
    with (
        tempfile.TemporaryDirectory(prefix="reeltalk-demo-") as data_dir,
        running_service(Path(data_dir), console) as url,
        httpx2.Client(base_url=url, timeout=60.0) as client,
    ):
        video = _upload(client, console)
        session = client.post("/v1/sessions", json={"video_ids": [video["id"]]}).raise_for_status().json()
        for question in QUESTIONS:
            _ask(client, console, session_id=session["id"], question=question)
    console.print("\n[dim]That was all; nothing of it is left running.[/dim]")
    return 0


def _upload(client: httpx2.Client, console: Console) -> dict[str, Any]:
    console.print(f"Uploading {SAMPLE.name} ({SAMPLE.stat().st_size / 1000:.0f} kB) …")
    with SAMPLE.open("rb") as file:
        reply = client.post("/v1/videos", files={"file": (SAMPLE.name, file, "video/mp4")})
    video: dict[str, Any] = reply.raise_for_status().json()
    console.print(
        f"  {video['id']}: {video['width']}x{video['height']}, {video['duration']:.1f} s, "
        f"{video['num_frames']} frames, {video['codec']}",
        highlight=False,
    )
    for name, data in _events(client, "GET", f"/v1/videos/{video['id']}/events"):
        console.print(f"  {name:<6} {data['fraction']:4.0%}", highlight=False)
        if name == "failed":
            raise SystemExit(1)
    return video


def _ask(client: httpx2.Client, console: Console, *, session_id: str, question: str) -> None:
    console.print(f"\n[bold]> {question}[/bold]")
    body = {"content": question, "stream": True, "max_tokens": 64}
    for name, data in _events(client, "POST", f"/v1/sessions/{session_id}/messages", json=body):
        if name == "delta":
            console.print(data["text"], end="", markup=False, highlight=False, soft_wrap=True)
        elif name == "done":
            tokens, timings = data["usage"]["completion_tokens"], data["timings"]
            console.print(
                f"\n  [dim]{tokens} tokens, the first after {timings['time_to_first_token_ms'] or 0:.0f} ms, "
                f"{data['finish_reason']}[/dim]",
                highlight=False,
            )
        elif name == "error":
            console.print(f"[red]{data['error']['message']}[/red]")
            raise SystemExit(1)


def _events(client: httpx2.Client, method: str, path: str, **request: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    with client.stream(method, path, **request) as reply:
        reply.raise_for_status()
        name = ""
        for line in reply.iter_lines():
            if line.startswith("event: "):
                name = line.removeprefix("event: ")
            elif line.startswith("data: "):
                yield name, json.loads(line.removeprefix("data: "))


@contextmanager
def running_service(data_dir: Path, console: Console) -> Iterator[str]:
    """A service on a free port of loopback; yields its URL and ends with the block."""
    console.print("Starting a service …")
    process = subprocess.Popen(
        [sys.executable, "-m", "service.cli", "serve", "--port", "0", "--data-dir", str(data_dir)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "REELTALK_LOG_LEVEL": "warning"},
    )
    watchdog = threading.Timer(_START_TIMEOUT, process.kill)
    watchdog.start()
    try:
        assert process.stdout is not None
        url = next((match[1] for line in process.stdout if (match := _READY.search(line))), None)
        watchdog.cancel()
        if url is None:
            raise SystemExit("The service did not start.")
        threading.Thread(target=process.stdout.read, daemon=True).start()
        console.print(f"  ready at {url}")
        yield url
    finally:
        watchdog.cancel()
        process.terminate()
        try:
            process.wait(_STOP_TIMEOUT)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

"""`reeltalk demo`: start a service, upload a clip over HTTP, stream answers about it, and stop."""

import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console

from service.terminal.client import Client
from service.terminal.failures import Failure
from service.terminal.printing import answer_figures

SAMPLE = Path(__file__).parents[1] / "web" / "samples" / "shapes.mp4"
QUESTIONS = ("What happens in the video?", "Which way does the circle move?", "How big is it?")

_READY = re.compile(r"Reeltalk is ready at (http://\S+?)/ ")
_START_TIMEOUT = 120.0
_STOP_TIMEOUT = 30.0


def run(*, console: Console) -> int:
    """Run the demo; returns the exit status."""
    with (
        tempfile.TemporaryDirectory(prefix="reeltalk-demo-") as data_dir,
        running_service(Path(data_dir), console) as url,
        Client(url) as client,
    ):
        try:
            video_id = _upload(client, console)
            session_id = str(client.open_session([video_id])["id"])
            for question in QUESTIONS:
                _ask(client, console, session_id=session_id, question=question)
        except Failure as failure:
            console.print(failure.message, style="red", markup=False)
            return 1
    console.print("\n[dim]The demo is over; the service has stopped.[/dim]")
    return 0


def _upload(client: Client, console: Console) -> str:
    console.print(f"Uploading {SAMPLE.name} ({SAMPLE.stat().st_size / 1000:.0f} kB) …")
    video = client.upload(SAMPLE)
    console.print(
        f"  {video['id']}: {video['width']}x{video['height']}, {video['duration']:.1f} s, "
        f"{video['num_frames']} frames, {video['codec']}",
        highlight=False,
    )
    for event in client.follow_video(video["id"]):
        if event.name == "failed":
            raise Failure.from_envelope(event.data)
        console.print(f"  {event.name:<6} {event.data['fraction']:4.0%}", highlight=False)
    return str(video["id"])


def _ask(client: Client, console: Console, *, session_id: str, question: str) -> None:
    console.print(f"\n[bold]> {question}[/bold]")
    for event in client.ask(session_id, question, max_tokens=64):
        if event.name == "delta":
            console.print(event.data["text"], end="", markup=False, highlight=False, soft_wrap=True)
        elif event.name == "done":
            console.print(f"\n  [dim]{answer_figures(event.data)}[/dim]", highlight=False)
        elif event.name == "error":
            raise Failure.from_envelope(event.data)


@contextmanager
def running_service(data_dir: Path, console: Console) -> Iterator[str]:
    """Run a service on a free port of loopback as long as the block; yields its URL."""
    console.print("Starting a service …")
    process = subprocess.Popen(
        [sys.executable, "-m", "service.commands.main", "serve", "--port", "0", "--data-dir", str(data_dir)],
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
        process.send_signal(signal.SIGINT)  # unlike SIGTERM, it skips the notice to a balancer
        try:
            process.wait(_STOP_TIMEOUT)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

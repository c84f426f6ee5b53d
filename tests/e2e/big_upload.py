"""Uploads a large file over a connection that breaks: `python -m tests.e2e.big_upload [MEGABYTES]` (default 300).

Prints the memory that the API process needed in addition, and fails if a byte is lost or the memory exceeds a limit.
"""

import hashlib
import shutil
import struct
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from random import Random

import requests
from tusclient.client import TusClient

from service.commands.demo import SAMPLE
from tests.e2e.wire import wire_to
from tests.running import RunningService, running

MEGABYTE = 1 << 20
TUS = {"Tus-Resumable": "1.0.0"}


@dataclass(frozen=True)
class Upload:
    """The result of an upload."""

    video: dict[str, object]
    num_breaks: int
    seconds: float
    peak_over_idle: int
    """The growth of the API process's memory, in bytes."""


def padded_video(path: Path, *, num_bytes: int) -> str:
    """Write the sample with a large box of random bytes that players skip; returns its SHA-256."""
    shutil.copy(SAMPLE, path)
    num_padding = num_bytes - path.stat().st_size
    digest = hashlib.sha256(path.read_bytes())
    noise = Random(num_bytes).randbytes(MEGABYTE)
    with path.open("ab") as file:
        header = struct.pack(">I4s", num_padding, b"free")
        file.write(header)
        digest.update(header)
        left = num_padding - len(header)
        while left:
            chunk = noise[:left]
            file.write(chunk)
            digest.update(chunk)
            left -= len(chunk)
    return digest.hexdigest()


def memory(pid: int, field: str) -> int:
    """The memory of a process in bytes: `VmRSS` is the current size, `VmHWM` the peak."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise AssertionError(field)


def interrupted_upload(service: RunningService, path: Path, *, num_breaks: int) -> Upload:
    """Upload a file with tuspy over a connection that breaks `num_breaks` times; tuspy's retries continue it."""
    pid = service.process.pid
    Path(f"/proc/{pid}/clear_refs").write_text("5")  # resets the peak
    idle, began, size = memory(pid, "VmRSS"), time.monotonic(), path.stat().st_size
    with wire_to(service.url) as wire, path.open("rb") as file:
        wire.fuses = [size // (num_breaks + 1)] * num_breaks
        uploader = TusClient(f"{wire.url}/v1/uploads").uploader(
            file_stream=file, metadata={"filename": path.name, "filetype": "video/mp4"}, retries=60, retry_delay=0.5
        )
        uploader.upload()
        state = requests.head(str(uploader.url), headers=TUS, timeout=30)
        num_broken = wire.num_breaks
    assert state.headers["Upload-Offset"] == str(size)
    video = service.wait_until_processed(state.headers["Reeltalk-Video-Id"])
    return Upload(video, num_broken, time.monotonic() - began, memory(pid, "VmHWM") - idle)


def main() -> None:
    """Run one upload and print a line of results."""
    num_megabytes = int(sys.argv[1]) if len(sys.argv) > 1 else 300
    with tempfile.TemporaryDirectory() as folder, running(Path(folder) / "data") as service:
        path = Path(folder) / "large.mp4"
        sha256 = padded_video(path, num_bytes=num_megabytes * MEGABYTE)
        upload = interrupted_upload(service, path, num_breaks=5)
    assert upload.video["sha256"] == sha256, "a byte is lost"
    assert upload.video["status"] == "ready"
    peak = upload.peak_over_idle / 1e6
    print(
        f"{num_megabytes} MiB, broken off {upload.num_breaks} times: {upload.seconds:.1f} s, the hash is equal, "
        f"the API process took {peak:.1f} MB over idle"
    )
    assert peak < 150, "the API process took 150 MB and more"


if __name__ == "__main__":
    main()

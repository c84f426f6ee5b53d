"""The decode child, `python -m service.decoding.child`: decodes one upload within limits, answers, and ends.

It is started before it is needed, waits for its one request on stdin and replies on stdout. It opens the file,
locks itself in, and only then reads the first byte. It holds no secret, no socket, no cache; imports neither torch
nor the web framework; and whoever started it may kill it at any moment.
"""

import ctypes
import os
import resource
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

import av.subtitles.stream  # noqa: F401 - PyAV imports it, and numpy `ma`, at first need: too late
import numpy as np
import numpy.ma
import numpy.typing as npt
from PIL import Image

from model.video.container import VideoFile
from model.video.pixels import resize
from model.video.reader import read_video
from model.video.spec import VideoError
from service.decoding import seccomp as jail
from service.decoding.protocol import (
    DecodeRequest,
    Probed,
    Progress,
    Rejected,
    Reply,
    Sampled,
    read_request,
    write_reply,
)

MAX_REQUEST = 1 << 16
MAX_OPEN_FILES = 16
PR_SET_PDEATHSIG = 1  # from Linux's <sys/prctl.h>


def main() -> None:
    """Wait for a request, answer it, end. Ends silently when stdin closes without one."""
    Image.preinit()  # now, not at the first thumbnail
    replies = private_stdout()
    part_from_the_world()
    line = sys.stdin.buffer.readline(MAX_REQUEST)
    if not line.endswith(b"\n"):
        return
    request = read_request(line)
    _silence_stderr()
    with VideoFile(request.path) as file:
        confine(request)
        if request.locked:
            jail.lock()
        for reply in answer(request, file):
            replies.write(write_reply(reply))
            replies.flush()


def answer(request: DecodeRequest, file: VideoFile) -> Iterator[Reply]:
    """The facts, the progress, and then the frames; or a rejection."""
    try:
        with read_video(file, request.limits) as video:
            yield Probed(facts=video.facts)
            total = video.num_frames(request.frame_spec)
            frames: list[npt.NDArray[np.uint8]] = []
            indices: list[int] = []
            timestamps: list[float] = []
            thumbnails: list[bytes] = []
            preprocess_seconds = 0.0
            for frame in video.frames(request.frame_spec):
                start = time.monotonic()
                frames.append(resize(frame.rgb, request.pixel_spec))
                preprocess_seconds += time.monotonic() - start
                thumbnails.append(thumbnail(frame.rgb, request.thumbnail_side))
                indices.append(frame.index)
                timestamps.append(frame.timestamp)
                yield Progress(done=len(frames), total=total)
        yield Sampled(
            indices=tuple(indices),
            timestamps=tuple(timestamps),
            frames=np.stack(frames).tobytes(),
            thumbnails=tuple(thumbnails),
            preprocess_seconds=preprocess_seconds,
        )
    except VideoError as error:
        yield Rejected(code=error.code, message=str(error))
    except MemoryError:
        yield Rejected(code="too_large", message="Decoding the video takes more memory than is allowed.")


def thumbnail(rgb: npt.NDArray[np.uint8], side: int) -> bytes:
    """A JPEG of a picture [height, width, 3] whose longest side is at most `side` pixels."""
    picture = Image.fromarray(rgb)
    picture.thumbnail((side, side))
    jpeg = BytesIO()
    picture.save(jpeg, "JPEG", quality=85)
    return jpeg.getvalue()


def private_stdout() -> BinaryIO:
    """Stdout under a number that no C library knows; what they print goes to stderr."""
    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    return replies


def _silence_stderr() -> None:
    """Only Python's own tracebacks reach the log from here on: C libraries quote the file they read."""
    sys.stderr = os.fdopen(os.dup(2), "w")
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
    os.close(nowhere)


def part_from_the_world() -> None:
    """End when the parent ends, gain no rights, see no network, be the first to go when memory runs out; Linux only.

    The kernel may refuse a network of one's own, as it does in most containers. It grants the rest.
    """
    if sys.platform == "linux":
        with suppress(OSError):  # some containers mount /proc read-only
            Path("/proc/self/oom_score_adj").write_text("1000", encoding="ascii")
        jail.leave_network()
        # After it: a change of credentials clears the signal.
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        jail.gain_no_rights()


def confine(request: DecodeRequest) -> None:
    """Bounds that hold even if a decoder is taken over. All imports must be done by now."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    cpu_seconds = int(used.ru_utime + used.ru_stime) + 1 + request.cpu_seconds
    for kind, soft, hard in (
        (resource.RLIMIT_AS, request.memory_bytes, request.memory_bytes),
        (resource.RLIMIT_CPU, cpu_seconds, cpu_seconds + 1),  # SIGXCPU first: it tells the parent why
        (resource.RLIMIT_FSIZE, 0, 0),
        (resource.RLIMIT_CORE, 0, 0),
        (resource.RLIMIT_NOFILE, MAX_OPEN_FILES, MAX_OPEN_FILES),
        (resource.RLIMIT_NPROC, 0, 0),  # it starts nothing; root is not bound by this
    ):
        _, ceiling = resource.getrlimit(kind)
        if ceiling != resource.RLIM_INFINITY:
            soft, hard = min(soft, ceiling), min(hard, ceiling)  # noqa: PLW2901
        resource.setrlimit(kind, (soft, hard))


if __name__ == "__main__":
    main()

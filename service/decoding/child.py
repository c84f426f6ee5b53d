"""The decode child, `python -m service.decoding.child`: decodes one upload within limits, replies, and exits.

The parent starts the child before it is needed. The child waits for one request on stdin and replies on stdout. It
opens the file, confines itself, and only then reads the first byte of the file. It has no secrets, sockets or caches,
imports neither torch nor the web framework, and the parent may kill it at any moment.
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

import av.subtitles.stream  # noqa: F401 - PyAV imports it, and numpy.ma, on first use: then the filter refuses it
import numpy as np
import numpy.ma
import numpy.typing as npt
from PIL import Image

from model.video.container import VideoFile
from model.video.pixels import Levels, squares
from model.video.reader import read_video
from model.video.sound import read_sound, sound_facts
from model.video.spec import VideoError
from service.decoding import seccomp
from service.decoding.protocol import (
    DecodeProgress,
    DecodeReply,
    DecodeRequest,
    Probed,
    Rejected,
    Sampled,
    read_request,
    write_reply,
)

MAX_REQUEST = 1 << 16
MAX_OPEN_FILES = 16
PR_SET_PDEATHSIG = 1  # from Linux's <sys/prctl.h>


def main() -> None:
    """Wait for a request, reply to it, and exit. Exits silently when stdin closes without a request."""
    Image.preinit()  # it imports the codecs, which is not possible once the filter is installed
    replies = private_stdout()
    isolate()
    line = sys.stdin.buffer.readline(MAX_REQUEST)
    if not line.endswith(b"\n"):
        return
    request = read_request(line)
    _silence_stderr()
    with VideoFile(request.path) as file:
        set_limits(request)
        if request.seccomp:
            seccomp.install_filter()
        for reply in decode(request, file):
            replies.write(write_reply(reply))
            replies.flush()


def decode(request: DecodeRequest, file: VideoFile) -> Iterator[DecodeReply]:
    """Yield the facts, the progress, and at last the frames and the sound; or a rejection."""
    try:
        with read_video(file, request.limits) as video:
            audio, audio_error = sound_facts(file, request.limits)
            yield Probed(facts=video.facts, audio=audio, audio_error=audio_error)
            total = video.num_frames(request.inputs.frames)
            frames: list[Levels] = []
            indices: list[int] = []
            timestamps: list[float] = []
            thumbnails: list[bytes] = []
            preprocess_seconds = 0.0
            for frame in video.frames(request.inputs.frames, scaled_to=request.inputs.scaled_to):
                resizing_at = time.monotonic()
                frames.append(squares(frame, request.inputs.pixels))
                preprocess_seconds += time.monotonic() - resizing_at
                thumbnails.append(thumbnail(frame.rgb, request.thumbnail_side))
                indices.append(frame.index)
                timestamps.append(frame.timestamp)
                yield DecodeProgress(done=len(frames), total=total)
            start = video.start
        sound, audio_error = read_sound(file, request.inputs, request.limits, video_start=start)
        yield Sampled(
            indices=tuple(indices),
            timestamps=tuple(timestamps),
            frames=np.concatenate(frames).tobytes(),
            sound=None if sound is None else sound.tobytes(),
            audio_error=audio_error,
            thumbnails=tuple(thumbnails),
            preprocess_seconds=preprocess_seconds,
        )
    except VideoError as error:
        yield Rejected(code=error.code, message=str(error))
    except MemoryError:
        yield Rejected(code="too_large", message="Decoding the video takes more memory than is allowed.")


def thumbnail(rgb: npt.NDArray[np.uint8], side: int) -> bytes:
    """Return a JPEG of a picture [height, width, 3] whose longest side is at most `side` pixels."""
    picture = Image.fromarray(rgb)
    picture.thumbnail((side, side))
    jpeg = BytesIO()
    picture.save(jpeg, "JPEG", quality=85)
    return jpeg.getvalue()


def private_stdout() -> BinaryIO:
    """Move stdout to a descriptor that no C library knows; what libraries print goes to stderr."""
    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    return replies


def _silence_stderr() -> None:
    """Discard what C libraries print, because they quote the file; Python's tracebacks still reach the log."""
    sys.stderr = os.fdopen(os.dup(2), "w")
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.dup2(null, 2)
    os.close(null)


def isolate() -> None:
    """Give up the network and new privileges, exit with the parent, and be the OOM killer's first choice. Linux only.

    The kernel may refuse a network namespace, as it does in most containers. It grants the rest.
    """
    if sys.platform == "linux":
        with suppress(OSError):  # some containers mount /proc read-only
            Path("/proc/self/oom_score_adj").write_text("1000", encoding="ascii")
        seccomp.leave_network()
        # After `leave_network`: a change of credentials clears the parent-death signal.
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        seccomp.set_no_new_privileges()


def set_limits(request: DecodeRequest) -> None:
    """Set resource limits that hold even if a file takes over a decoder. All imports must be done before."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    cpu_seconds = int(used.ru_utime + used.ru_stime) + 1 + request.cpu_seconds
    for kind, soft, hard in (
        (resource.RLIMIT_AS, request.memory_bytes, request.memory_bytes),
        (resource.RLIMIT_CPU, cpu_seconds, cpu_seconds + 1),  # SIGXCPU comes first and tells the parent the reason
        (resource.RLIMIT_FSIZE, 0, 0),
        (resource.RLIMIT_CORE, 0, 0),
        (resource.RLIMIT_NOFILE, MAX_OPEN_FILES, MAX_OPEN_FILES),
        (resource.RLIMIT_NPROC, 0, 0),  # no new processes; root is exempt
    ):
        _, ceiling = resource.getrlimit(kind)
        if ceiling != resource.RLIM_INFINITY:
            soft, hard = min(soft, ceiling), min(hard, ceiling)  # noqa: PLW2901
        resource.setrlimit(kind, (soft, hard))


if __name__ == "__main__":
    main()

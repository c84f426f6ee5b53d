"""Decoding an upload in a sandboxed child: one process each, started before it is needed, never reused.

The API process keeps its hands off the file. What a child may spend is bounded in the child (memory, CPU time,
files) and here (wall time, length of replies). However a decode ends, the child's whole process group is killed
and reaped.
"""

import asyncio
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Coroutine
from contextlib import suppress
from dataclasses import asdict, dataclass
from math import ceil
from pathlib import Path
from typing import Literal

import structlog

from model.video.pixels import PixelSpec
from model.video.spec import FrameSpec, VideoErrorCode, VideoFacts, VideoLimits
from service.decoding.protocol import (
    PREFIX,
    DecodeRequest,
    Probed,
    Progress,
    ProtocolBreach,
    Rejected,
    Reply,
    Sampled,
    read_lengths,
    read_reply,
    write_request,
)

ROOT = Path(__file__).resolve().parents[2]
"""Where `service` and `model` are imported from."""

_log = structlog.get_logger(__name__)

Child = asyncio.subprocess.Process
DecodeEvent = Probed | Progress

READ_AHEAD = 1 << 20
"""Bytes of a child's replies that wait in this process before the child is made to wait."""
REAP_TIMEOUT = 10.0
"""Seconds that a killed child may take to be gone before it is left to the operating system."""
RESPAWN_PAUSE = 1.0
"""Seconds between the death of a child that waited and the start of the next: where none lives, few are started."""
CHECK_TIMEOUT = 30.0
"""Seconds that finding out which walls hold on this machine may take; it takes a tenth of one."""
_FROM_OUTSIDE = {-signal.SIGKILL, -signal.SIGTERM}
"""How a child ends that somebody else has ended: an operator, or the kernel where the machine has no memory left.
Nothing in a file does that; over its own limits a child gets other signals."""
PASSED_ON = ("PATH", "PYTHONPATH", "LD_LIBRARY_PATH", "LANG", "LC_ALL", "SYSTEMROOT")
"""All that a child sees of the environment: it must hold no secret."""


class VideoRejected(Exception):
    """The file is at fault; code and message as in `VideoError`."""

    def __init__(self, code: VideoErrorCode, message: str) -> None:
        super().__init__(message)
        self.code: VideoErrorCode = code


class DecodeFailed(Exception):
    """Decoding broke down, in one child and then in another, or took too much of the processor: the file's doing.

    Only `decode_unavailable` is ours: no child could be started, or two were killed from outside or got no time.
    """

    def __init__(self, code: Literal["decode_timeout", "decode_crashed", "decode_unavailable"], message: str) -> None:
        super().__init__(message)
        self.code = code


class _ChildLost(Exception):
    """A child gave no answer; `verdict` is what that comes to if the next one gives none either."""

    def __init__(self, verdict: DecodeFailed) -> None:
        super().__init__(str(verdict))
        self.verdict = verdict


class SandboxMissing(Exception):
    """This machine has no kernel filter for decode children, and the operator wants none to run without."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Sandbox:
    """Which walls this machine puts around a decode child, beyond limits and an own session."""

    seccomp: bool = False
    """It can open, connect, start and signal nothing once it has its file (`service.decoding.seccomp`)."""
    network_namespace: bool = False
    """It has a network of its own, without devices."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DecodedVideo:
    """A video's facts and its sampled frames, resized but not normalised."""

    facts: VideoFacts
    indices: tuple[int, ...]
    timestamps: tuple[float, ...]
    """Seconds after the first frame."""
    frames: bytes
    """Raw uint8 pixels of `shape`, row after row."""
    shape: tuple[int, int, int, int]
    """[frames, size, size, 3]."""
    thumbnails: tuple[bytes, ...]
    """A JPEG of each frame, whole and upright."""
    seconds: float
    """How long decoding took."""
    preprocess_seconds: float
    """How much of that the child says went into resizing; never more than all."""


class Decoder:
    """Decodes uploads, at most `concurrency` at a time; others wait their turn."""

    def __init__(
        self,
        limits: VideoLimits,
        timeout: float,
        *,
        concurrency: int = 2,
        memory_bytes: int = 2 << 30,
        thumbnail_side: int = 320,
        sandbox_required: bool = False,
    ) -> None:
        self._limits, self._timeout = limits, timeout
        self._memory_bytes, self._thumbnail_side = memory_bytes, thumbnail_side
        self._sandbox_required = sandbox_required
        self.sandbox = Sandbox()
        """What holds on this machine; known once started."""
        self._turns = asyncio.Semaphore(concurrency)
        self._spare: Child | None = None
        self._children: set[Child] = set()
        self._all_reaped = asyncio.Event()
        self._all_reaped.set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._closed = asyncio.Event()

    async def start(self) -> None:
        """Find out which walls hold here, and have a first child ready.

        Raises:
            SandboxMissing: not the one that is required.
        """
        self.sandbox = await _walls_of_this_machine()
        if self.sandbox.seccomp:
            _log.info("decode_sandbox", **asdict(self.sandbox))
        elif self._sandbox_required:
            raise SandboxMissing(
                "The kernel filter for decode children does not hold here: `python -m service.decoding.seccomp`."
            )
        else:
            _log.warning("decode_sandbox", advice="uploads are decoded within limits only", **asdict(self.sandbox))
        self._keep(await self._spawn())

    async def close(self) -> None:
        """Kill and reap every child. A decode that is under way fails."""
        self._closed.set()
        for child in self._children:
            _kill(child)  # a decode sees its child go, and reaps it
        spare, self._spare = self._spare, None
        if spare is not None:
            await self._end(spare)
        while self._tasks:
            await asyncio.wait(self._tasks)
        await self._all_reaped.wait()

    async def decode(
        self,
        path: Path,
        frame_spec: FrameSpec,
        pixel_spec: PixelSpec,
        on_event: Callable[[DecodeEvent], None],
    ) -> DecodedVideo:
        """The frames of `path` that `frame_spec` asks for, as `pixel_spec` wants them.

        `on_event` hears the facts as soon as they are known, then the progress.

        A child that dies, or gets nothing done in its time, may be the machine's doing as well as the file's, so
        another tries once more, and `on_event` hears nothing twice. One that was busy all the time had its chance.

        Raises:
            VideoRejected: the file cannot be used.
            DecodeFailed: `decode_timeout`, `decode_crashed` or `decode_unavailable`.
        """
        request = self._request(path, frame_spec, pixel_spec)
        news = _OnlyNews(on_event)
        async with self._turns:
            started = time.monotonic()
            try:
                facts, sampled = await self._attempt(request, news)
            except _ChildLost as lost:
                if lost.verdict.code == "decode_timeout":
                    raise lost.verdict from None
                _log.warning("decode_tried_again", because=lost.verdict.code)
                try:
                    facts, sampled = await self._attempt(request, news)
                except _ChildLost as lost_too:
                    raise lost_too.verdict from None
        seconds = time.monotonic() - started
        return DecodedVideo(
            facts=facts,
            indices=sampled.indices,
            timestamps=sampled.timestamps,
            frames=sampled.frames,
            shape=(len(sampled.indices), *request.shape[1:]),
            thumbnails=sampled.thumbnails,
            seconds=seconds,
            preprocess_seconds=min(seconds, sampled.preprocess_seconds),
        )

    async def _attempt(
        self, request: DecodeRequest, on_event: Callable[[DecodeEvent], None]
    ) -> tuple[VideoFacts, Sampled]:
        child = await self._take()
        used_before = _processor_seconds(child)
        try:
            async with asyncio.timeout(self._timeout):
                return await _converse(child, request, on_event)
        except TimeoutError:
            raise _overdue(_processor_seconds(child) - used_before, timeout=self._timeout) from None
        except ProtocolBreach:
            raise await _autopsy(child) from None
        finally:
            await self._end(child)

    def _request(self, path: Path, frame_spec: FrameSpec, pixel_spec: PixelSpec) -> DecodeRequest:
        return DecodeRequest(
            path=str(path.absolute()),
            frame_spec=frame_spec,
            pixel_spec=pixel_spec,
            limits=self._limits,
            thumbnail_side=self._thumbnail_side,
            memory_bytes=self._memory_bytes,
            cpu_seconds=ceil(self._timeout),
            locked=self.sandbox.seccomp,
        )

    async def _take(self) -> Child:
        """A child of one's own; the next one is started at once."""
        child, self._spare = self._spare, None
        if child is not None and child.returncode is not None:  # it died while it waited
            await self._end(child)
            child = None
        self._in_background(self._start_spare())
        child = child or await self._spawn()
        if self._closed.is_set():
            await self._end(child)
            raise DecodeFailed("decode_unavailable", "The service is shutting down.")
        return child

    async def _start_spare(self) -> None:
        with suppress(DecodeFailed):  # the decode that finds no spare tries again, and tells
            child = await self._spawn()
            if self._closed.is_set() or self._spare is not None:
                await self._end(child)
            else:
                self._keep(child)

    def _keep(self, child: Child) -> None:
        self._spare = child
        self._in_background(self._replace_if_it_dies(child))

    async def _replace_if_it_dies(self, child: Child) -> None:
        """So that the next upload finds one ready; a child that was taken meanwhile is its decode's business."""
        await child.wait()
        if self._spare is not child:
            return
        self._spare = None
        await self._end(child)
        with suppress(TimeoutError):
            await asyncio.wait_for(self._closed.wait(), RESPAWN_PAUSE)
        if not self._closed.is_set() and self._spare is None:
            await self._start_spare()

    async def _spawn(self) -> Child:
        try:
            child = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "service.decoding.child",
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                limit=READ_AHEAD,
                start_new_session=True,
                cwd=ROOT,
                # One thread: OpenBLAS would reserve more address space than the child may have.
                env=_environment() | {"OPENBLAS_NUM_THREADS": "1"},
            )
        except OSError:
            message = "No process could be started to decode the video; try again in a moment."
            raise DecodeFailed("decode_unavailable", message) from None
        self._children.add(child)
        self._all_reaped.clear()
        return child

    async def _end(self, child: Child) -> None:
        """Kill the child's process group at once, and reap it even if the caller is cancelled meanwhile."""
        _kill(child)
        await asyncio.shield(self._in_background(self._reap(child)))

    async def _reap(self, child: Child) -> None:
        with suppress(TimeoutError):
            await asyncio.wait_for(child.communicate(), REAP_TIMEOUT)  # closes its pipes, too
        self._children.discard(child)
        if not self._children:
            self._all_reaped.set()

    def _in_background(self, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


def _environment() -> dict[str, str]:
    return {name: os.environ[name] for name in PASSED_ON if name in os.environ}


async def _walls_of_this_machine() -> Sandbox:
    """What a process like a decode child finds when it tries; nothing holds where it cannot tell."""
    try:
        async with asyncio.timeout(CHECK_TIMEOUT):
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "service.decoding.seccomp",
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                start_new_session=True,
                cwd=ROOT,
                env=_environment(),
            )
            try:
                told, _ = await process.communicate()
            finally:
                _kill(process)
        walls = json.loads(told)
        return Sandbox(seccomp=walls["seccomp"] is True, network_namespace=walls["network_namespace"] is True)
    except (OSError, TimeoutError, ValueError, KeyError):
        return Sandbox()


def _kill(child: Child) -> None:
    if child.returncode is None:
        with suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)


class _OnlyNews:
    """Passes on what a second child says only where it goes beyond what the first has said."""

    def __init__(self, on_event: Callable[[DecodeEvent], None]) -> None:
        self._on_event = on_event
        self._last = -1

    def __call__(self, event: DecodeEvent) -> None:
        place = event.done if isinstance(event, Progress) else 0
        if place > self._last:
            self._last = place
            self._on_event(event)


async def _converse(
    child: Child, request: DecodeRequest, on_event: Callable[[DecodeEvent], None]
) -> tuple[VideoFacts, Sampled]:
    """Ask, and listen until the frames are there: facts first, each progress further than the one before."""
    await _send(child, write_request(request))
    facts: VideoFacts | None = None
    done = 0
    while True:
        match await _receive(child, request):
            case Rejected(code=code, message=message):
                raise VideoRejected(code, message)
            case Probed() as event if facts is None:
                facts = event.facts
                on_event(event)
            case Progress() as event if facts is not None and event.done == done + 1 <= event.total:
                done = event.done
                on_event(event)
            case Sampled() as sampled if facts is not None and max(sampled.indices) < facts.num_frames:
                return facts, sampled
            case _:
                raise ProtocolBreach("A reply is out of order.")


async def _send(child: Child, request: bytes) -> None:
    assert child.stdin is not None
    try:
        child.stdin.write(request)
        await child.stdin.drain()
    except OSError:
        raise ProtocolBreach("The child has gone.") from None


async def _receive(child: Child, request: DecodeRequest) -> Reply:
    assert child.stdout is not None
    try:
        header, payload = read_lengths(await child.stdout.readexactly(PREFIX.size), request)
        return read_reply(await child.stdout.readexactly(header), await child.stdout.readexactly(payload), request)
    except (asyncio.IncompleteReadError, OSError):
        raise ProtocolBreach("The child has gone.") from None


async def _autopsy(child: Child) -> _ChildLost:
    """What to say of a child that fell silent."""
    with suppress(TimeoutError):
        await asyncio.wait_for(child.wait(), 1.0)
    if child.returncode == -signal.SIGXCPU:
        return _ChildLost(_timed_out())
    if child.returncode in _FROM_OUTSIDE:
        return _ChildLost(_unavailable("The machine ended the decoding of the video, twice; try again in a moment."))
    return _ChildLost(DecodeFailed("decode_crashed", "Decoding the video broke down, twice."))


def _overdue(processor_seconds: float, *, timeout: float) -> _ChildLost:
    """What to say of a child whose time is up: it was busy with the file, or did not get to it."""
    if processor_seconds >= timeout / 2:
        return _ChildLost(_timed_out())
    return _ChildLost(_unavailable("The machine had no time to decode the video, twice; try again in a moment."))


def _processor_seconds(child: Child) -> float:
    """How long a child has run on a processor; 0 where the system does not tell, so that the file gets no blame."""
    try:
        fields = (
            Path(f"/proc/{child.pid}/stat").read_text(encoding="ascii", errors="replace").rpartition(")")[2].split()
        )
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _timed_out() -> DecodeFailed:
    return DecodeFailed("decode_timeout", "Decoding the video took too long.")


def _unavailable(message: str) -> DecodeFailed:
    return DecodeFailed("decode_unavailable", message)

"""Decodes uploads in sandboxed children: one child per upload, tried again once if the child is lost.

The API process never reads the file itself. The child limits its memory, CPU time and files; the parent limits the
wall time and the length of replies. However a decode ends, the child's process group is killed and reaped.
"""

import asyncio
import contextlib
import signal
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import asdict, dataclass
from math import ceil
from pathlib import Path
from typing import Literal

import structlog

from model.video.inputs import InputSpec
from model.video.spec import SoundErrorCode, VideoFacts, VideoLimits
from service.decoding.child_process import ChildProcess, DecodeEvent
from service.decoding.children import Children, NoChild
from service.decoding.protocol import DecodeProgress, DecodeRequest, ProtocolViolation, Sampled
from service.decoding.sandbox import Sandbox, SandboxUnavailable, probe_sandbox
from service.observability.metrics import Metrics
from service.settings import Settings

_log = structlog.get_logger(__name__)

_EXTERNAL_SIGNALS = {-signal.SIGKILL, -signal.SIGTERM}
"""Exit statuses of a child that an operator or the kernel's OOM killer has ended. No file causes them: a child that
exceeds its own limits gets other signals."""


class DecodeFailed(Exception):
    """Decoding failed: two children in a row were lost, or one used up its CPU time.

    `decode_timeout` and `decode_crashed` are the file's fault. `decode_unavailable` is the service's fault: no child
    could be started, or two were killed from outside or got no CPU time.
    """

    def __init__(self, code: Literal["decode_timeout", "decode_crashed", "decode_unavailable"], message: str) -> None:
        super().__init__(message)
        self.code = code


class _ChildLost(Exception):
    """A child gave no result; `failure` is the error to raise if the next child gives none either."""

    def __init__(self, failure: DecodeFailed) -> None:
        super().__init__(str(failure))
        self.failure = failure


@dataclass(frozen=True, kw_only=True, slots=True)
class DecodedVideo:
    """A video's facts, its sampled frames, resized but not normalised, and the sound that the model hears."""

    facts: VideoFacts
    indices: tuple[int, ...]
    timestamps: tuple[float, ...]
    """Seconds after the first frame."""
    frames: bytes
    """Levels of `shape`, row after row, in the dtype of the pixel spec."""
    shape: tuple[int, int, int, int]
    """[frames, size, size, 3]."""
    thumbnails: tuple[bytes, ...]
    """A JPEG of each frame, uncropped and upright."""
    sound: bytes | None
    """Stretches float32 [count, samples]; None without sound, or for a model or a session without it."""
    audio_error: SoundErrorCode | None
    """Why there is no sound although the model hears."""
    seconds: float
    """How long decoding took."""
    preprocess_seconds: float
    """The part of `seconds` that the child reports for resizing; never more than `seconds`."""


class Decoder:
    """Decodes uploads, at most `concurrency` at a time; further ones wait.

    `timeout` is the wall time and the CPU time of one child, in seconds.
    """

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
        """The layers that work on this machine; known once the decoder is started."""
        self._slots = asyncio.Semaphore(concurrency)
        self._children = Children()

    async def start(self) -> None:
        """Probe the sandbox and start the first child.

        Raises:
            SandboxUnavailable: the seccomp filter is required and does not work here.
            DecodeFailed: `decode_unavailable`, no child can be started.
        """
        self.sandbox = await probe_sandbox()
        if self.sandbox.seccomp:
            _log.info("decode_sandbox", **asdict(self.sandbox))
        elif self._sandbox_required:
            raise SandboxUnavailable(
                "The seccomp filter for decode children does not work here: `python -m service.decoding.seccomp`."
            )
        else:
            advice = "uploads are decoded within resource limits only"
            _log.warning("decode_sandbox", advice=advice, **asdict(self.sandbox))
        try:
            await self._children.start()
        except NoChild as error:
            raise _unavailable(str(error)) from None

    async def close(self) -> None:
        """Kill and reap every child. A decode in progress fails."""
        await self._children.close()

    async def decode(
        self,
        path: Path,
        inputs: InputSpec,
        on_event: Callable[[DecodeEvent], None],
    ) -> DecodedVideo:
        """Decode the frames and the sound of `path` that `inputs` selects, and resize and resample them.

        `on_event` is called with the facts as soon as they are known, then with each frame's progress.

        A child that dies, or gets little CPU time before its timeout, may be lost because of the machine as well as
        because of the file. A second child then tries once more, and no event is repeated. A child that was busy
        until its timeout is not retried.

        Raises:
            VideoRejected: the file cannot be used.
            DecodeFailed: `decode_timeout`, `decode_crashed` or `decode_unavailable`.
        """
        request = self._request(path, inputs)
        on_new_event = _WithoutRepeats(on_event)
        async with self._slots:
            started = time.monotonic()
            try:
                facts, sampled = await self._attempt(request, on_new_event)
            except _ChildLost as first:
                if first.failure.code == "decode_timeout":
                    raise first.failure from None
                _log.warning("decode_retried", reason=first.failure.code)
                try:
                    facts, sampled = await self._attempt(request, on_new_event)
                except _ChildLost as second:
                    raise second.failure from None
        seconds = time.monotonic() - started
        return DecodedVideo(
            facts=facts,
            indices=sampled.indices,
            timestamps=sampled.timestamps,
            frames=sampled.frames,
            shape=inputs.pixels.shape(len(sampled.indices)),
            thumbnails=sampled.thumbnails,
            sound=sampled.sound,
            audio_error=sampled.audio_error,
            seconds=seconds,
            preprocess_seconds=min(seconds, sampled.preprocess_seconds),
        )

    async def _attempt(
        self, request: DecodeRequest, on_event: Callable[[DecodeEvent], None]
    ) -> tuple[VideoFacts, Sampled]:
        try:
            async with self._children.child() as child:
                cpu_seconds_before = child.cpu_seconds()
                try:
                    async with asyncio.timeout(self._timeout):
                        return await child.decode(request, on_event)
                except TimeoutError:
                    cpu_seconds = child.cpu_seconds() - cpu_seconds_before
                    raise _ChildLost(_timeout_failure(cpu_seconds, timeout=self._timeout)) from None
                except ProtocolViolation:
                    raise _ChildLost(await _exit_failure(child)) from None
        except NoChild as error:
            raise _unavailable(str(error)) from None

    def _request(self, path: Path, inputs: InputSpec) -> DecodeRequest:
        return DecodeRequest(
            path=str(path.absolute()),
            inputs=inputs,
            limits=self._limits,
            thumbnail_side=self._thumbnail_side,
            memory_bytes=self._memory_bytes,
            cpu_seconds=ceil(self._timeout),
            seccomp=self.sandbox.seccomp,
        )


class _WithoutRepeats:
    """Passes events on, without those of a second child that the first one has sent already."""

    def __init__(self, on_event: Callable[[DecodeEvent], None]) -> None:
        self._on_event = on_event
        self._last = -1

    def __call__(self, event: DecodeEvent) -> None:
        position = event.done if isinstance(event, DecodeProgress) else 0
        if position > self._last:
            self._last = position
            self._on_event(event)


async def _exit_failure(child: ChildProcess) -> DecodeFailed:
    """The failure of a child that broke the protocol, judged by how it exits."""
    await child.wait_briefly()
    if child.returncode == -signal.SIGXCPU:
        return _timed_out()
    if child.returncode in _EXTERNAL_SIGNALS:
        return _unavailable("The decoding of the video was killed twice from outside; try again in a moment.")
    return DecodeFailed("decode_crashed", "Decoding the video crashed twice.")


def _timeout_failure(cpu_seconds: float, *, timeout: float) -> DecodeFailed:
    """The failure of a child that reached its timeout: it was busy with the file, or it got too little CPU time."""
    if cpu_seconds >= timeout / 2:
        return _timed_out()
    return _unavailable("Decoding the video got too little CPU time, twice; try again in a moment.")


def _timed_out() -> DecodeFailed:
    return DecodeFailed("decode_timeout", "Decoding the video took too long.")


def _unavailable(message: str) -> DecodeFailed:
    return DecodeFailed("decode_unavailable", message)


@contextlib.asynccontextmanager
async def run_decoder(settings: Settings, *, metrics: Metrics) -> AsyncIterator[Decoder]:
    """Run the decoder of a replica, and show which layers of its sandbox hold on this machine."""
    decoder = Decoder(
        VideoLimits(
            max_side=settings.max_video_side,
            max_pixels=settings.max_video_pixels,
            max_frames=settings.max_video_frames,
            max_duration=settings.max_video_seconds,
        ),
        settings.decode_timeout,
        concurrency=settings.decode_concurrency,
        sandbox_required=settings.decode_sandbox == "required",
    )
    try:
        await decoder.start()
        for layer, holds in asdict(decoder.sandbox).items():
            metrics.decode_sandbox.labels(layer).set(holds)
        yield decoder
    finally:
        await decoder.close()

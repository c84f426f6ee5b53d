"""Uploads are decoded in children that are limited, killed when they misbehave, and always reaped."""

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from model.video.inputs import InputSpec, SoundSpec
from model.video.pixels import PixelSpec, resize
from model.video.reader import open_video
from model.video.sampling import sample_clip
from model.video.spec import FrameSpec, VideoLimits
from service.decoding.child_process import ChildProcess, DecodeEvent, VideoRejected
from service.decoding.decoder import DecodeFailed, Decoder, _timeout_failure
from service.decoding.protocol import DecodeProgress, Probed
from tests import clips
from tests.sound_clips import write_clip

PIXELS = PixelSpec(size=64)
INPUTS = InputSpec(frames=FrameSpec(count=8), pixels=PIXELS)
HEARING = InputSpec(frames=FrameSpec(count=8), pixels=PIXELS, sound=SoundSpec(count=3, rule="end-points"))
MANY = InputSpec(frames=FrameSpec(count=64), pixels=PIXELS)

pytestmark = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks for processes in /proc")


@asynccontextmanager
async def running(decoder: Decoder) -> AsyncIterator[Decoder]:
    """Start and close a decoder; afterwards none of its children is left."""
    await decoder.start()
    try:
        yield decoder
    finally:
        await decoder.close()
        assert decode_children() == []


def decode_children() -> list[int]:
    """Return the decode children of this process, and its children that have exited but are not reaped."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                state, parent = (folder / "stat").read_text().rpartition(")")[2].split()[:2]
                command = (folder / "cmdline").read_bytes()
            except OSError:  # it exited meanwhile
                continue
            if int(parent) == os.getpid() and (state == "Z" or b"service.decoding.child" in command):
                found.append(int(folder.name))
    return found


def only_child() -> int:
    """Return the spare child of an idle decoder, which the next decode takes."""
    patience = time.monotonic() + 10
    while not (pids := decode_children()):  # it may not have executed the module yet
        assert time.monotonic() < patience
        time.sleep(0.01)
    (pid,) = pids
    return pid


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def environment_of(pid: int) -> bytes:
    return Path(f"/proc/{pid}/environ").read_bytes()


def slow_mp4(path: Path) -> Path:
    """Write a video of which 64 frames take about a second to decode."""
    return clips.write_video(path, clips.moving_shapes(12, 1280, 720), options={"preset": "ultrafast"})


def ignore(event: DecodeEvent) -> None:
    """Ignore an event."""


def send(number: signal.Signals, pid: int) -> Callable[[DecodeEvent], None]:
    """Return a callback that sends a signal to the child as soon as it has opened the file."""

    def on_event(event: DecodeEvent) -> None:
        if isinstance(event, Probed):
            os.kill(pid, number)

    return on_event


async def new_child(known: set[int]) -> int:
    """Wait for a decode child that is not one of `known`."""
    async with asyncio.timeout(60):
        while not (others := set(decode_children()) - known):  # noqa: ASYNC110 - there is no event for it
            await asyncio.sleep(0.01)
    return others.pop()


async def end_two(number: signal.Signals, first: int) -> None:
    """Send a signal to the stopped child that has the file, and then to the child that retries."""
    second = await new_child({first})
    os.kill(second, signal.SIGSTOP)
    for child, known in ((first, {first, second}), (second, set())):
        os.kill(child, number)
        with contextlib.suppress(ProcessLookupError):  # SIGKILL ends a stopped process, too
            os.kill(child, signal.SIGCONT)
        if known:
            await new_child(known)  # by now the second child is in use


async def test_a_child_gives_the_same_frames_as_decoding_in_this_process(tmp_path: Path) -> None:
    path = clips.write_video(tmp_path / "a.mp4", clips.numbered_pictures(48))
    events: list[DecodeEvent] = []
    async with running(Decoder(VideoLimits(), 60)) as decoder:
        decoded = await decoder.decode(path, INPUTS, events.append)

    with open_video(path, VideoLimits()) as video:
        frames = list(video.frames(INPUTS.frames))
        expected = np.stack([resize(frame.rgb, PIXELS) for frame in frames])
    assert decoded.facts == video.facts
    assert decoded.indices == tuple(frame.index for frame in frames)
    assert decoded.timestamps == tuple(frame.timestamp for frame in frames)
    assert decoded.shape == (8, 64, 64, 3)
    np.testing.assert_array_equal(np.frombuffer(decoded.frames, np.uint8).reshape(decoded.shape), expected)
    assert 0 < decoded.seconds < 60
    probed = Probed(facts=video.facts, audio=None, audio_error="no_audio_stream")
    assert events == [probed, *(DecodeProgress(done=done, total=8) for done in range(1, 9))]


@pytest.mark.parametrize(("codec", "layout"), [("aac", "stereo"), ("libopus", "5.1"), ("libmp3lame", "mono")])
async def test_a_child_gives_the_same_sound_as_decoding_in_this_process(
    tmp_path: Path, codec: str, layout: str
) -> None:
    path = write_clip(tmp_path / "a.mkv", codec=codec, rate=48_000, layout=layout)
    events: list[DecodeEvent] = []
    async with running(Decoder(VideoLimits(), 60)) as decoder:
        decoded = await decoder.decode(path, HEARING, events.append)
    expected = sample_clip(path, HEARING).inputs.sound
    assert decoded.sound is not None
    assert expected is not None
    np.testing.assert_array_equal(np.frombuffer(decoded.sound, np.float32).reshape(3, 32_000), expected)
    assert decoded.audio_error is None
    assert isinstance(events[0], Probed)
    assert events[0].audio is not None
    assert events[0].audio.rate == 48_000


async def test_a_video_without_sound_gives_a_model_that_hears_its_frames(tmp_path: Path) -> None:
    path = clips.write_video(tmp_path / "a.mp4", clips.numbered_pictures(24))
    async with running(Decoder(VideoLimits(), 60)) as decoder:
        decoded = await decoder.decode(path, HEARING, ignore)
    assert (decoded.sound, decoded.audio_error) == (None, "no_audio_stream")
    assert len(decoded.indices) == 8


async def test_a_rule_may_take_fewer_frames_of_a_short_video_than_requested(tmp_path: Path) -> None:
    path = clips.write_video(tmp_path / "a.mp4", clips.numbered_pictures(3))
    events: list[DecodeEvent] = []
    async with running(Decoder(VideoLimits(), 60)) as decoder:
        decoded = await decoder.decode(
            path, InputSpec(frames=FrameSpec(count=100, rule="video-chatgpt"), pixels=PIXELS), events.append
        )
    assert decoded.indices == (0, 1, 1)
    assert decoded.shape == (3, 64, 64, 3)
    assert len(decoded.frames) == 3 * 64 * 64 * 3
    assert len(decoded.thumbnails) == 3
    assert events[1:] == [DecodeProgress(done=done, total=3) for done in (1, 2, 3)]


async def test_thumbnails_show_the_whole_frame_the_right_way_up(tmp_path: Path) -> None:
    path = clips.rotated_mp4(tmp_path / "a.mp4", 180)
    async with running(Decoder(VideoLimits(), 60, thumbnail_side=80)) as decoder:
        decoded = await decoder.decode(path, INPUTS, ignore)
    assert len(decoded.thumbnails) == 8
    picture = Image.open(BytesIO(decoded.thumbnails[0]))
    assert (picture.format, picture.size) == ("JPEG", (80, 48))
    red, green, blue = np.asarray(picture)[-4, 4].tolist()
    assert min(red, 150) - max(green, blue) > 50


BAD_FILES: list[tuple[Callable[[Path], Path], set[str]]] = [
    (clips.text_file, {"not_a_video"}),
    (clips.audio_only_mp4, {"no_video_stream"}),
    (clips.zero_frame_mp4, {"no_frames"}),
    (clips.truncated_mp4, {"not_a_video", "undecodable"}),
    (clips.cut_mp4, {"undecodable"}),
    (clips.wide_mp4, {"too_large"}),
    (clips.swollen_webm, {"undecodable"}),
]


async def test_bad_files_are_rejected_with_a_code_and_our_own_message(tmp_path: Path) -> None:
    async with running(Decoder(VideoLimits(), 60)) as decoder:
        for make, codes in BAD_FILES:
            with pytest.raises(VideoRejected) as rejected:
                await decoder.decode(make(tmp_path / "upload.mp4"), INPUTS, ignore)
            assert rejected.value.code in codes, make
            assert "upload" not in str(rejected.value)


async def test_a_script_named_like_a_video_reads_no_other_file(tmp_path: Path) -> None:
    secret = clips.write_video(tmp_path / "secret.ts", clips.numbered_pictures(20))
    script = clips.ffconcat_script(tmp_path / "film.mp4", secret)
    async with running(Decoder(VideoLimits(), 60)) as decoder:
        with pytest.raises(VideoRejected, match="not a video"):
            await decoder.decode(script, INPUTS, ignore)


async def test_memory_is_limited_even_if_the_video_limits_are_not(tmp_path: Path) -> None:
    path = clips.swollen_webm(tmp_path / "a.webm")
    unlimited = VideoLimits(max_side=1 << 20, max_pixels=1 << 30)  # accepts its frames of 96 MB each
    async with running(Decoder(unlimited, 60, memory_bytes=320 << 20)) as decoder:
        with pytest.raises(VideoRejected) as rejected:
            await decoder.decode(path, INPUTS, ignore)
    assert rejected.value.code == "too_large"


async def test_a_decode_whose_child_is_killed_is_retried_without_repeated_events(tmp_path: Path) -> None:
    slow = slow_mp4(tmp_path / "slow.mp4")
    events: list[DecodeEvent] = []
    async with running(Decoder(VideoLimits(), 60)) as decoder:
        pid = only_child()

        def kill_half_way(event: DecodeEvent) -> None:
            events.append(event)
            if isinstance(event, DecodeProgress) and event.done == 8 and is_alive(pid):
                os.kill(pid, signal.SIGKILL)

        decoded = await decoder.decode(slow, MANY, kill_half_way)
        assert not is_alive(pid)
    assert len(decoded.indices) == 64
    probed = Probed(facts=decoded.facts, audio=None, audio_error="no_audio_stream")
    assert events == [probed, *(DecodeProgress(done=done, total=64) for done in range(1, 65))]


@pytest.mark.parametrize(
    ("number", "code"),
    [
        (signal.SIGSEGV, "decode_crashed"),
        (signal.SIGABRT, "decode_crashed"),
        (signal.SIGKILL, "decode_unavailable"),  # the OOM killer or an operator, never the file
    ],
)
async def test_a_second_child_that_dies_fails_this_decode_only(
    tmp_path: Path, number: signal.Signals, code: str
) -> None:
    slow, good = slow_mp4(tmp_path / "slow.mp4"), clips.h264_mp4(tmp_path / "good.mp4")
    async with running(Decoder(VideoLimits(), 60)) as decoder:
        first = only_child()
        os.kill(first, signal.SIGSTOP)
        ending = asyncio.create_task(end_two(number, first))
        with pytest.raises(DecodeFailed) as failed:
            await decoder.decode(slow, MANY, ignore)
        await ending
        assert failed.value.code == code
        assert (await decoder.decode(good, INPUTS, ignore)).facts.num_frames == 48


async def test_children_that_take_too_long_are_killed(tmp_path: Path) -> None:
    good = clips.h264_mp4(tmp_path / "good.mp4")
    async with running(Decoder(VideoLimits(), 2)) as decoder:
        first = only_child()
        os.kill(first, signal.SIGSTOP)
        started = time.monotonic()
        decoding = asyncio.create_task(decoder.decode(good, INPUTS, ignore))
        second = await new_child({first})
        os.kill(second, signal.SIGSTOP)
        with pytest.raises(DecodeFailed) as failed:
            await decoding
        assert failed.value.code == "decode_unavailable", "neither got any CPU time"
        assert 4 <= time.monotonic() - started < 10
        assert not is_alive(first)
        assert not is_alive(second)


@pytest.mark.parametrize(
    ("seconds", "code"), [(59.0, "decode_timeout"), (31.0, "decode_timeout"), (3.0, "decode_unavailable")]
)
def test_a_timeout_is_the_files_fault_if_the_child_was_busy_half_of_the_time(seconds: float, code: str) -> None:
    assert _timeout_failure(seconds, timeout=60.0).code == code


async def test_the_cpu_time_of_a_child_is_measured() -> None:
    busy = await asyncio.create_subprocess_exec(sys.executable, "-c", "while True: pass")
    try:
        async with asyncio.timeout(60):
            while ChildProcess(busy).cpu_seconds() < 0.2:  # noqa: ASYNC110 - there is no event for it
                await asyncio.sleep(0.05)
    finally:
        busy.kill()
        await busy.wait()
    assert ChildProcess(busy).cpu_seconds() == 0.0


async def test_a_child_that_used_up_its_cpu_time_is_not_retried(tmp_path: Path) -> None:
    slow = slow_mp4(tmp_path / "slow.mp4")
    async with running(Decoder(VideoLimits(), 60)) as decoder:
        with pytest.raises(DecodeFailed) as failed:
            await decoder.decode(slow, MANY, send(signal.SIGXCPU, only_child()))
    assert failed.value.code == "decode_timeout"


async def test_a_cancelled_decode_leaves_no_child_behind(tmp_path: Path) -> None:
    slow = slow_mp4(tmp_path / "slow.mp4")
    async with running(Decoder(VideoLimits(), 60)) as decoder:
        pid = only_child()
        probed = asyncio.Event()
        decoding = asyncio.create_task(decoder.decode(slow, MANY, lambda _: probed.set()))
        await probed.wait()
        decoding.cancel()
        with pytest.raises(asyncio.CancelledError):
            await decoding
        assert not is_alive(pid)


async def test_closing_ends_a_decode_that_is_under_way(tmp_path: Path) -> None:
    slow = slow_mp4(tmp_path / "slow.mp4")
    async with running(Decoder(VideoLimits(), 60)) as decoder:
        probed = asyncio.Event()
        decoding = asyncio.create_task(decoder.decode(slow, MANY, lambda _: probed.set()))
        await probed.wait()
        await decoder.close()
        with pytest.raises(DecodeFailed):
            await decoding
        with pytest.raises(DecodeFailed):
            await decoder.decode(slow, INPUTS, ignore)


async def test_no_child_decodes_twice(tmp_path: Path) -> None:
    good = clips.h264_mp4(tmp_path / "good.mp4")
    async with running(Decoder(VideoLimits(), 60)) as decoder:
        first = only_child()
        await decoder.decode(good, INPUTS, ignore)
        assert not is_alive(first)
        await decoder.decode(good, INPUTS, ignore)


async def test_a_spare_that_died_while_it_waited_is_replaced(tmp_path: Path) -> None:
    good = clips.h264_mp4(tmp_path / "good.mp4")
    async with running(Decoder(VideoLimits(), 60)) as decoder:
        os.kill(only_child(), signal.SIGKILL)
        async with asyncio.timeout(10):
            while decode_children():  # noqa: ASYNC110 - there is no event for it
                await asyncio.sleep(0.01)
        await asyncio.sleep(0.05)
        assert (await decoder.decode(good, INPUTS, ignore)).facts.num_frames == 48


async def test_a_spare_that_died_is_replaced_without_an_upload() -> None:
    async with running(Decoder(VideoLimits(), 60)):
        for _ in range(2):
            killed = only_child()
            os.kill(killed, signal.SIGKILL)
            async with asyncio.timeout(10):
                while not [pid for pid in decode_children() if pid != killed and is_alive(pid)]:  # noqa: ASYNC110
                    await asyncio.sleep(0.01)


async def test_no_more_decodes_run_at_a_time_than_allowed(tmp_path: Path) -> None:
    good = clips.h264_mp4(tmp_path / "good.mp4")
    events: list[str] = []
    async with running(Decoder(VideoLimits(), 60, concurrency=1)) as decoder:
        await asyncio.gather(
            *(
                decoder.decode(good, INPUTS, lambda _, name=name: events.append(name))  # type: ignore[misc]
                for name in "abc"
            )
        )
    assert len(events) == 27
    assert "".join(events) in {first * 9 + second * 9 + third * 9 for first, second, third in ("abc",)}


async def test_a_child_gets_no_secret_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REELTALK_API_KEYS", "secret")
    async with running(Decoder(VideoLimits(), 60)):
        environment = environment_of(only_child())
    assert b"OPENBLAS_NUM_THREADS=1" in environment
    assert b"secret" not in environment


PARENT = """
import asyncio, os, signal, sys
from pathlib import Path
import structlog
from model.video.inputs import InputSpec, SoundSpec
from model.video.pixels import PixelSpec
from model.video.spec import FrameSpec, VideoLimits
from service.decoding.decoder import Decoder
from tests.service.decoding.test_decoder import decode_children, only_child

async def main():
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    decoder = Decoder(VideoLimits(), 60)
    await decoder.start()
    busy = only_child()
    def hold(event):
        os.kill(busy, signal.SIGSTOP)
        asyncio.get_running_loop().call_later(1.0, lambda: print(*decode_children(), flush=True))
    await decoder.decode(Path(sys.argv[1]), InputSpec(frames=FrameSpec(count=64), pixels=PixelSpec()), hold)

asyncio.run(main())
"""


def test_children_die_with_their_parent_busy_or_not(tmp_path: Path) -> None:
    slow = slow_mp4(tmp_path / "slow.mp4")
    with subprocess.Popen([sys.executable, "-c", PARENT, str(slow)], stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        pids = [int(word) for word in parent.stdout.readline().split()]
        assert len(pids) == 2
        assert all(is_alive(pid) for pid in pids)
        parent.kill()
    patience = time.monotonic() + 10
    while any(is_alive(pid) for pid in pids):
        assert time.monotonic() < patience
        time.sleep(0.02)

"""Creates small video files for the tests with PyAV; each of the invalid ones has one defect."""

from collections.abc import Container, Iterable, Iterator, Sequence
from fractions import Fraction
from itertools import chain
from pathlib import Path
from random import Random

import av
import numpy as np
import numpy.typing as npt
from av.stream import Disposition
from av.video.stream import VideoStream

Picture = npt.NDArray[np.uint8]

BITS = 10
BLOCK = 16
TIME_BASE = Fraction(1, 12_000)
"""A time base that represents all frame rates of the tests, and times without a fixed rate."""


def numbered_picture(number: int, width: int = 160, height: int = 96) -> Picture:
    """Create a picture [height, width, 3] that shows its number as a row of blocks, one for each bit, white for 1.

    The block in the top right corner is red, so that a test can check the orientation.
    """
    assert number < 1 << BITS
    picture = np.full((height, width, 3), 40, np.uint8)
    picture[BLOCK : height - BLOCK, :, 1] = np.linspace(20, 120, width, dtype=np.uint8)
    middle = height // 2
    for bit in range(BITS):
        shade = 235 if number >> bit & 1 else 16
        picture[middle - BLOCK // 2 : middle + BLOCK // 2, bit * BLOCK : (bit + 1) * BLOCK] = shade
    picture[:BLOCK, width - BLOCK :] = (220, 20, 20)
    return picture


def read_number(rgb: Picture) -> int:
    """Read the number that an upright picture of `numbered_picture` shows."""
    middle = rgb.shape[0] // 2
    blocks = [rgb[middle - 4 : middle + 4, bit * BLOCK + 4 : (bit + 1) * BLOCK - 4] for bit in range(BITS)]
    return sum(1 << bit for bit, block in enumerate(blocks) if block.mean() > 128)


def numbered_pictures(count: int, width: int = 160, height: int = 96) -> Iterator[Picture]:
    """Yield pictures with the numbers 0 to count - 1."""
    return (numbered_picture(number, width, height) for number in range(count))


def moving_shapes(count: int, width: int = 160, height: int = 96) -> Iterator[Picture]:
    """Yield pictures of a red disc that moves right and a blue square that moves left on a dark background."""
    rows, columns = np.mgrid[:height, :width]
    for number in range(count):
        x = round((width - 1) * number / max(count - 1, 1))
        picture = np.full((height, width, 3), 24, np.uint8)
        picture[(columns - x) ** 2 + (rows - height // 3) ** 2 <= 12**2] = (220, 30, 30)
        square = (abs(columns - (width - x)) <= 10) & (abs(rows - 2 * height // 3) <= 10)
        picture[square] = (30, 60, 220)
        yield picture


def write_video(
    path: Path,
    pictures: Iterable[Picture],
    *,
    codec: str = "libx264",
    fps: int = 24,
    moments: Sequence[float] | None = None,
    options: dict[str, str] | None = None,
    pix_fmt: str | None = None,
    rotation: int = 0,
    faststart: bool = False,
    sound: bool = False,
) -> Path:
    """Encode pictures to `path`, whose suffix selects the container; `moments` (in seconds) replace the fixed rate.

    `rotation` in degrees counterclockwise is written to the display matrix; the stored pictures are not rotated.
    """
    remaining = iter(pictures)
    first = next(remaining)
    with av.open(path, "w", options={"movflags": "faststart"} if faststart else {}) as container:
        stream = container.add_stream(codec, rate=fps, options={"g": "12"} if options is None else options)
        assert isinstance(stream, VideoStream)
        stream.height, stream.width = first.shape[:2]
        stream.pix_fmt = pix_fmt or ("yuvj420p" if codec == "mjpeg" else "yuv420p")
        if moments is not None:
            stream.codec_context.time_base = TIME_BASE
        if rotation:
            stream.set_display_rotation(rotation)
        if sound:
            _add_silence(container, container.add_stream("aac", rate=16_000, layout="mono"))
        for number, picture in enumerate(chain([first], remaining)):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            if moments is not None:
                frame.time_base, frame.pts = TIME_BASE, round(moments[number] / TIME_BASE)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def _add_silence(container: av.container.OutputContainer, audio: av.stream.Stream) -> None:
    assert isinstance(audio, av.AudioStream)
    for number in range(16):
        silence = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        silence.sample_rate, silence.pts = 16_000, number * 1024
        container.mux(audio.encode(silence))
    container.mux(audio.encode(None))


def h264_mp4(path: Path, *, frames: int = 48, fps: int = 24, width: int = 160, height: int = 96) -> Path:
    """A typical upload: H.264 with B-frames and a closed GOP of 12, in MP4."""
    return write_video(path, moving_shapes(frames, width, height), fps=fps)


def vp9_webm(path: Path, *, frames: int = 24) -> Path:
    """VP9 in WebM, whose header does not contain the number of frames."""
    options = {"g": "8", "deadline": "realtime", "cpu-used": "8"}
    return write_video(path, moving_shapes(frames), codec="libvpx-vp9", options=options)


def mpeg4_avi(path: Path, *, frames: int = 24) -> Path:
    """MPEG-4 part 2 in AVI."""
    return write_video(path, moving_shapes(frames), codec="mpeg4", options={"g": "8"})


def vfr_mp4(path: Path, *, frames: int = 40) -> Path:
    """Numbered pictures at a variable rate: every third one lasts four times as long."""
    moments = np.cumsum([0.0] + [0.04 * (4 if number % 3 == 2 else 1) for number in range(frames - 1)])
    return write_video(path, numbered_pictures(frames), moments=moments.tolist())


def rotated_mp4(path: Path, degrees: int, *, frames: int = 24) -> Path:
    """Numbered pictures with a display rotation of `degrees` counterclockwise."""
    return write_video(path, numbered_pictures(frames), rotation=degrees)


def audio_only_mp4(path: Path) -> Path:
    """One second of silence without a video stream."""
    with av.open(path, "w") as container:
        _add_silence(container, container.add_stream("aac", rate=16_000, layout="mono"))
    return path


def zero_frame_mp4(path: Path) -> Path:
    """A fragmented MP4 that ends before its first fragment: a video track without frames."""
    with av.open(path, "w", options={"movflags": "empty_moov+frag_keyframe"}) as container:
        stream = container.add_stream("mpeg4", rate=24)
        assert isinstance(stream, VideoStream)
        stream.width, stream.height, stream.pix_fmt = 160, 96, "yuv420p"
        container.start_encoding()
    return path


def truncated_mp4(path: Path) -> Path:
    """The first half of an MP4 whose index is at its end, so that no frame can be located."""
    data = h264_mp4(path).read_bytes()
    path.write_bytes(data[: len(data) // 2])
    return path


def cut_mp4(path: Path, *, keep: float = 0.5) -> Path:
    """An MP4 whose index is at its beginning and lists frames that are cut off."""
    data = write_video(path, numbered_pictures(96), faststart=True).read_bytes()
    path.write_bytes(data[: round(len(data) * keep)])
    return path


def wide_mp4(path: Path) -> Path:
    """A valid picture that is wider than the default limit."""
    return write_video(path, moving_shapes(2, width=8256, height=32), options={"preset": "ultrafast"})


def swollen_webm(path: Path, *, side: int = 8000) -> Path:
    """VP8 whose first frame declares `side` x `side` pixels, unlike its container."""
    data = bytearray(write_video(path.with_suffix(".webm"), moving_shapes(4), codec="libvpx").read_bytes())
    # Width and height follow the start code of a key frame (RFC 6386, 9.1).
    size = data.index(b"\x9d\x01\x2a") + 3
    data[size : size + 4] = side.to_bytes(2, "little") * 2
    path.write_bytes(data)
    return path


def ffconcat_script(path: Path, target: Path) -> Path:
    """A playlist that asks the reader to open another file."""
    path.write_text(f"ffconcat version 1.0\nfile {target.name}\n", encoding="utf-8")
    return path


def text_file(path: Path) -> Path:
    """A text file with any file name."""
    path.write_text("This is not a film.\n" * 50, encoding="utf-8")
    return path


def hidden_frames_webm(path: Path, *, frames: int, hidden: Container[int]) -> Path:
    """VP8 in which some of the numbered pictures are decoded but not shown, like alternate reference frames."""
    shown = write_video(path.with_suffix(".mkv"), numbered_pictures(frames), codec="libvpx", options={"g": "30"})
    with av.open(shown) as original, av.open(path, "w") as container:
        stream = original.streams.video[0]
        copy = container.add_stream_from_template(stream)
        for number, packet in enumerate(original.demux(stream)):
            if packet.size:
                data = bytearray(bytes(packet))
                if number in hidden:
                    data[0] &= ~0x10  # `show_frame` (RFC 6386, 9.1)
                again = av.Packet(bytes(data))
                again.pts, again.dts, again.time_base = packet.pts, packet.dts, packet.time_base
                again.is_keyframe, again.stream = packet.is_keyframe, copy
                container.mux(again)
    return path


def empty_file(path: Path) -> Path:
    """An empty file."""
    path.touch()
    return path


def song_with_cover(path: Path) -> Path:
    """An audio file whose cover is stored as a video stream of one picture."""
    with av.open(path, "w") as container:
        cover = container.add_stream("mjpeg", rate=1)
        assert isinstance(cover, VideoStream)
        cover.width, cover.height, cover.pix_fmt = 160, 96, "yuvj420p"
        cover.disposition = Disposition.attached_pic
        audio = container.add_stream("aac", rate=16_000, layout="mono")
        container.mux(cover.encode(av.VideoFrame.from_ndarray(numbered_picture(1), format="rgb24")))
        container.mux(cover.encode(None))
        _add_silence(container, audio)
    return path


def unsupported_avi(path: Path) -> Path:
    """A video with the codec Cinepak, which is not on the allowlist."""
    written = write_video(path.with_suffix(".avi"), moving_shapes(4), codec="cinepak", pix_fmt="rgb24", options={})
    return written.rename(path)


def trimmed_copy(source: Path, path: Path, *, frames: int, fps: int = 24) -> Path:
    """The packets of `source` with an edit list that hides the first `frames` frames, as video editors write it."""
    with av.open(source) as original, av.open(path, "w") as container:
        stream = original.streams.video[0]
        copy = container.add_stream_from_template(stream)
        assert stream.time_base is not None
        earlier = round(Fraction(frames, fps) / stream.time_base)
        for packet in original.demux(stream):
            if packet.pts is not None and packet.dts is not None:
                packet.pts, packet.dts, packet.stream = packet.pts - earlier, packet.dts - earlier, copy
                container.mux(packet)
    return path


def misindexed_mp4(path: Path) -> Path:
    """Numbered pictures at a constant rate, one of which is shown much later than its position."""
    data = bytearray(write_video(path, numbered_pictures(48), options={"g": "12", "bf": "3"}).read_bytes())
    # Composition offsets (ISO/IEC 14496-12, 8.6.1.3): entries of (count, ticks) after version and number of entries.
    last = data.index(b"ctts") + 12 + 8 * (int.from_bytes(data[data.index(b"ctts") + 8 :][:4], "big") - 1)
    ticks = int.from_bytes(data[last + 4 : last + 8], "big")
    data[last + 4 : last + 8] = (ticks + 512 * 100).to_bytes(4, "big")
    path.write_bytes(data)
    return path


def strangely_titled_mkv(path: Path) -> Path:
    """A video whose title is not valid UTF-8."""
    with av.open(path, "w") as container:
        container.metadata["title"] = "Cafe Zuerich"
        stream = container.add_stream("libx264", rate=24)
        assert isinstance(stream, VideoStream)
        stream.width, stream.height, stream.pix_fmt = 160, 96, "yuv420p"
        for picture in moving_shapes(24):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
    data = path.read_bytes()
    assert b"Cafe" in data
    path.write_bytes(data.replace(b"Cafe", "Café".encode("latin-1")))
    return path


def variant(clip: bytes, rng: Random) -> bytes:
    """The same clip with another hash: appends a `free` box, which readers ignore."""
    payload = rng.randbytes(16)
    return clip + (8 + len(payload)).to_bytes(4, "big") + b"free" + payload

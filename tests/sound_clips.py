"""Creates small videos with sound, and decodes sound in the plain way: the whole track, from its start."""

from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

import av
import numpy as np
import numpy.typing as npt
from av.audio.stream import AudioStream
from av.video.stream import VideoStream

from model.video.inputs import SoundSpec
from model.video.resampling import num_resampled, resample, source_range
from tests.clips import numbered_pictures

FPS = 10
Samples = npt.NDArray[np.float32]


def melody(seconds: float, rate: int, channels: int) -> Samples:
    """Tones that change every tenth of a second, over noise and a constant, other ones in each channel."""
    draw = np.random.default_rng(7)
    times = np.arange(round(seconds * rate)) / rate
    pitches = draw.uniform(100, min(3000, rate / 3), (channels, int(seconds * 10) + 1))
    phases = np.cumsum(pitches[:, (times * 10).astype(int)], axis=1) / rate
    noise = draw.normal(0, 0.02, (channels, len(times)))
    return (0.3 * np.sin(2 * np.pi * phases) + noise + 0.02).astype(np.float32)


def write_clip(
    path: Path,
    *,
    codec: str = "aac",
    rate: int = 44_100,
    layout: str = "stereo",
    sound_seconds: float = 6.0,
    video_seconds: float = 6.0,
    delay: float = 0.0,
    options: dict[str, str] | None = None,
) -> Path:
    """Write a video with a melody, which begins `delay` seconds late; `options` are those of its encoder."""
    with av.open(path, "w") as container:
        picture = container.add_stream("mpeg4", rate=FPS, options={"g": "10"})
        assert isinstance(picture, VideoStream)
        picture.width, picture.height, picture.pix_fmt = 160, 96, "yuv420p"
        sound = container.add_stream(codec, rate=rate, layout=layout)
        assert isinstance(sound, AudioStream)
        sound.codec_context.options = {"strict": "experimental"} | (options or {})
        packets = [
            packet
            for number, rgb in enumerate(numbered_pictures(round(video_seconds * FPS)))
            for packet in picture.encode(_frame(rgb, number))
        ]
        packets += picture.encode(None)
        packets += _encoded(sound, melody(sound_seconds, rate, sound.codec_context.layout.nb_channels), delay)
        for packet in sorted(packets, key=lambda packet: float((packet.dts or 0) * packet.time_base)):
            container.mux(packet)
    return path


def damaged_sound(source: Path, path: Path) -> Path:
    """A copy of a video whose packets of sound, from the third on, are overwritten."""
    with av.open(source) as container:
        places = [(packet.pos or 0, packet.size) for packet in container.demux(audio=0) if packet.size]
    data = bytearray(source.read_bytes())
    for position, size in places[2:]:
        data[position : position + size] = b"\xff" * size
    path.write_bytes(bytes(data))
    return path


def _frame(rgb: npt.NDArray[np.uint8], number: int) -> av.VideoFrame:
    frame = av.VideoFrame.from_ndarray(rgb, format="rgb24")
    frame.pts, frame.time_base = number, Fraction(1, FPS)
    return frame


def _encoded(stream: AudioStream, samples: Samples, delay: float) -> list["av.Packet[AudioStream]"]:
    codec = stream.codec_context
    codec.open(strict=False)
    length = codec.frame_size or 1024
    kind = codec.format.name
    packets: list[av.Packet[AudioStream]] = []
    for start in range(0, samples.shape[1], length):
        piece = samples[:, start : start + length]
        frame = av.AudioFrame.from_ndarray(_as(kind, piece), format=kind, layout=codec.layout.name)
        frame.sample_rate, frame.pts = codec.sample_rate, start + round(delay * codec.sample_rate)
        frame.time_base = Fraction(1, codec.sample_rate)
        packets += stream.encode(frame)
    return packets + stream.encode(None)


def _as(kind: str, samples: Samples) -> npt.NDArray[Any]:
    values: npt.NDArray[Any] = samples
    if kind.startswith("s16"):
        values = np.rint(samples * 32767).astype(np.int16)
    if kind.startswith("u8"):
        values = np.rint(samples * 127 + 128).astype(np.uint8)
    if kind.startswith("s32"):
        values = np.rint(samples * (2**31 - 256)).astype(np.int32)
    return np.ascontiguousarray(values) if kind.endswith("p") else np.ascontiguousarray(values.T).reshape(1, -1)


def plain_samples(path: Path) -> tuple[Samples, int]:
    """Decode the whole sound track: float32 [channels, samples] and the rate."""
    with av.open(path) as container:
        stream = container.streams.audio[0]
        frames = [_floats(frame) for frame in container.decode(stream)]
        return np.concatenate(frames, axis=1), stream.rate


def _floats(frame: av.AudioFrame) -> Samples:
    values = frame.to_ndarray()
    if not frame.format.is_planar:
        values = values.reshape(-1, frame.layout.nb_channels).T
    if values.dtype.kind == "u":
        return ((values.astype(np.float32) - 128) / 128).astype(np.float32)
    scale = {"f": 1.0, "i": 2.0 ** (8 * values.itemsize - 1)}[values.dtype.kind]
    return (values / scale).astype(np.float32)


def plain_stretches(path: Path, spec: SoundSpec) -> Samples:
    """Do what the published code does: decode and resample everything, then centre the stretches in one array."""
    source, rate = plain_samples(path)
    length = num_resampled(source.shape[1], rate=rate, target=spec.rate)
    low, high = source_range(0, length, rate=rate, target=spec.rate)
    padded = np.pad(source, ((0, 0), (-low, max(0, high - source.shape[1]))))[:, : high - low]
    whole = resample(padded, 0, length, rate=rate, target=spec.rate)
    stretches = []
    for start in spec.starts(length):
        view = whole[:, start : start + spec.max_samples]
        view -= view.mean()
        stretches.append(view[0].copy())
    assert all(one.shape == other.shape for one, other in pairwise(stretches))
    return np.stack(stretches)

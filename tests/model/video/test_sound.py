"""Stretches that are sought in a file equal those of a plain decode of its whole sound track."""

from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from model.sound import mel_spectrograms
from model.video import sound_track
from model.video.container import VideoFile
from model.video.inputs import InputSpec, SoundSpec
from model.video.pixels import PixelSpec
from model.video.sampling import sample_clip
from model.video.sound import centred, open_sound, read_stretches
from model.video.spec import FrameSpec, SoundError, SoundFacts, VideoError, VideoLimits
from tests.clips import h264_mp4
from tests.sound_clips import Samples, plain_samples, plain_stretches, write_clip

OVERLAPPING = SoundSpec(count=8)
APART = SoundSpec(count=3, rule="end-points")

TOLERANCE = 1e-4
"""Of the largest mel value: that of the reference sets."""


def stretches(path: Path, spec: SoundSpec, frames: FrameSpec | None = None) -> tuple[Samples, SoundFacts]:
    with VideoFile(path) as file, open_sound(file, VideoLimits()) as track:
        return read_stretches(track, spec, frames or FrameSpec(), video_start=Fraction(0)), track.facts


def apart(some: Samples, others: Samples, spec: SoundSpec) -> float:
    assert some.shape == others.shape
    one, other = mel_spectrograms(some, spec), mel_spectrograms(others, spec)
    return float(np.abs(one - other).max() / np.abs(other).max())


@pytest.mark.parametrize("spec", [OVERLAPPING, APART], ids=["overlapping", "apart"])
@pytest.mark.parametrize(
    ("suffix", "codec", "rate", "layout"),
    [
        ("mp4", "aac", 44_100, "stereo"),
        ("mp4", "aac", 8_000, "mono"),
        ("mp4", "aac", 96_000, "5.1"),
        ("mp4", "libopus", 48_000, "stereo"),
        ("mp4", "libmp3lame", 44_100, "mono"),
        ("mp4", "flac", 48_000, "stereo"),
        ("mkv", "aac", 44_100, "stereo"),
        ("mkv", "aac", 48_000, "5.1"),
        ("mkv", "libopus", 48_000, "mono"),
        ("mkv", "libopus", 48_000, "5.1"),
        ("mkv", "libmp3lame", 32_000, "stereo"),
        ("mkv", "flac", 96_000, "stereo"),
        ("mkv", "pcm_s16le", 11_025, "mono"),
        ("mkv", "pcm_u8", 22_050, "stereo"),
        ("mkv", "ac3", 48_000, "5.1"),
        ("mkv", "vorbis", 44_100, "stereo"),
        ("avi", "libmp3lame", 44_100, "stereo"),
        ("avi", "pcm_s16le", 22_050, "stereo"),
        ("ts", "aac", 44_100, "stereo"),
    ],
)
def test_stretches_equal_those_of_a_plain_decode(
    tmp_path: Path, spec: SoundSpec, suffix: str, codec: str, rate: int, layout: str
) -> None:
    path = write_clip(tmp_path / f"clip.{suffix}", codec=codec, rate=rate, layout=layout, sound_seconds=8.3)
    found, facts = stretches(path, spec)
    assert (facts.rate, facts.channels) == (rate, {"mono": 1, "stereo": 2, "5.1": 6}[layout])
    assert apart(found, plain_stretches(path, spec), spec) <= TOLERANCE


@pytest.mark.parametrize(
    ("suffix", "codec", "rate"),
    [
        ("mp4", "aac", 44_100),
        ("mp4", "libmp3lame", 22_050),
        ("mp4", "libopus", 48_000),
        ("mkv", "aac", 44_100),
        ("mkv", "libmp3lame", 22_050),
        ("mkv", "libopus", 48_000),
        ("mkv", "flac", 16_000),
        ("avi", "libmp3lame", 22_050),
        ("ts", "aac", 22_050),
    ],
)
def test_stretches_that_are_sought_equal_those_of_a_plain_decode(
    tmp_path: Path, suffix: str, codec: str, rate: int
) -> None:
    options = {"aac_pns": "0"} if codec == "aac" else {}  # an AAC decoder draws the noise that is coded as such
    path = write_clip(
        tmp_path / f"clip.{suffix}", codec=codec, rate=rate, layout="mono", sound_seconds=83.0, options=options
    )
    found, _ = stretches(path, APART)
    assert apart(found, plain_stretches(path, APART), APART) <= TOLERANCE


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
@pytest.mark.parametrize(
    ("sound_seconds", "video_seconds", "delay"),
    [(3.1, 6.0, 0.0), (9.7, 4.0, 0.0), (5.0, 6.0, 1.3), (1.3, 6.0, 0.0), (0.2, 6.0, 2.5), (20.0, 1.0, 0.7)],
)
def test_sound_may_be_shorter_or_longer_than_the_pictures_or_start_later(
    tmp_path: Path, suffix: str, sound_seconds: float, video_seconds: float, delay: float
) -> None:
    path = write_clip(
        tmp_path / f"clip.{suffix}", sound_seconds=sound_seconds, video_seconds=video_seconds, delay=delay
    )
    found, _ = stretches(path, OVERLAPPING)
    assert apart(found, plain_stretches(path, OVERLAPPING), OVERLAPPING) <= TOLERANCE


def test_an_interval_is_measured_from_the_first_frame(tmp_path: Path) -> None:
    path = write_clip(
        tmp_path / "clip.mkv", codec="flac", rate=16_000, sound_seconds=8.0, video_seconds=10.0, delay=1.5
    )
    spec = SoundSpec(count=1)
    within, _ = stretches(path, spec, FrameSpec(start=3.5, end=5.5))
    samples = plain_samples(path)[0][:, 32_000:64_000]
    assert within[0] == pytest.approx(samples[0] - samples.mean(), abs=1e-6)
    before, _ = stretches(path, spec, FrameSpec(start=1.0, end=2.5))
    assert before.shape == (1, 16_000)
    with pytest.raises(SoundError) as refused:
        stretches(path, spec, FrameSpec(start=0.2, end=1.5))
    assert refused.value.code == "audio_too_short"


def test_the_mean_of_all_channels_is_subtracted_from_the_first() -> None:
    stretch = np.stack([np.full(100, 2.0), np.full(100, 6.0)]).astype(np.float32)
    assert centred([stretch], [0])[0] == pytest.approx(np.full(100, 2.0 - 4.0))


def test_a_file_without_sound_says_so(tmp_path: Path) -> None:
    with pytest.raises(SoundError) as refused:
        stretches(h264_mp4(tmp_path / "silent.mp4"), APART)
    assert refused.value.code == "no_audio_stream"


def test_a_codec_that_is_not_allowed_is_not_decoded(tmp_path: Path) -> None:
    with pytest.raises(SoundError) as refused:
        stretches(write_clip(tmp_path / "clip.mkv", codec="tta", sound_seconds=2.0), APART)
    assert refused.value.code == "unsupported_audio"


@pytest.mark.parametrize("rate", [4_000, 7_999, 200_000])
def test_a_rate_out_of_bounds_is_not_decoded(tmp_path: Path, rate: int) -> None:
    with pytest.raises(SoundError) as refused:
        stretches(write_clip(tmp_path / "clip.mkv", codec="pcm_s16le", rate=rate, sound_seconds=0.5), APART)
    assert refused.value.code == "unsupported_audio"


@pytest.mark.parametrize(("bound", "suffix"), [("_MAX_PACKETS", "mkv"), ("_MAX_FRAMES", "mkv"), ("_MAX_FRAMES", "mp4")])
def test_a_track_of_too_many_pieces_is_not_read_to_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bound: str, suffix: str
) -> None:
    path = write_clip(tmp_path / f"clip.{suffix}", codec="aac", rate=48_000, sound_seconds=6.0)  # 282 packets
    stretches(path, APART)
    monkeypatch.setattr(sound_track, bound, 200)
    with pytest.raises(SoundError) as refused:
        stretches(path, APART)
    assert refused.value.code == "undecodable_audio"


def test_sound_of_a_moment_is_too_short(tmp_path: Path) -> None:
    with pytest.raises(SoundError) as refused:
        stretches(write_clip(tmp_path / "clip.mkv", codec="pcm_s16le", rate=16_000, sound_seconds=0.02), APART)
    assert refused.value.code == "audio_too_short"


@pytest.mark.parametrize("codec", ["aac", "flac", "libopus"])
def test_damaged_sound_is_refused_or_read_but_never_fails_otherwise(tmp_path: Path, codec: str) -> None:
    whole = write_clip(tmp_path / "clip.mkv", codec=codec, rate=48_000, sound_seconds=6.0).read_bytes()
    draw = np.random.default_rng(3)
    outcomes = set()
    for number in range(12):
        data = bytearray(whole)
        for place in draw.integers(2000, len(data), 200):
            data[place] ^= 0xFF
        path = tmp_path / f"{number}.mkv"
        path.write_bytes(bytes(data))
        try:
            found, _ = stretches(path, OVERLAPPING)
            assert np.isfinite(found).all()
            outcomes.add("read")
        except SoundError as error:
            outcomes.add(error.code)
    assert outcomes <= {"read", "undecodable_audio", "no_audio_stream", "unsupported_audio"}
    assert outcomes != {"read"} or codec == "libopus"  # any bits are valid Opus


@pytest.mark.parametrize(
    ("suffix", "codec"), [("mp4", "aac"), ("mkv", "libopus"), ("ts", "aac"), ("avi", "libmp3lame")]
)
def test_a_damaged_file_that_can_be_seen_is_seen_whatever_its_sound(tmp_path: Path, suffix: str, codec: str) -> None:
    whole = write_clip(tmp_path / f"clip.{suffix}", codec=codec, rate=48_000, sound_seconds=3.0).read_bytes()
    seeing = InputSpec(frames=FrameSpec(count=2), pixels=PixelSpec(size=32))
    draw = np.random.default_rng(5)
    for number in range(10):
        data = bytearray(whole[: draw.integers(500, len(whole))] if number % 4 == 0 else whole)
        for place in draw.integers(0, len(data), draw.integers(1, 60)):
            data[place] = draw.integers(256)
        path = tmp_path / f"{number}.{suffix}"
        path.write_bytes(bytes(data))
        try:
            seen = sample_clip(path, seeing)
        except VideoError:
            continue
        heard = sample_clip(path, replace(seeing, sound=OVERLAPPING))
        assert heard.indices == seen.indices
        assert (heard.inputs.sound is None) == (heard.sound_error is not None)


def test_samples_that_are_no_numbers_are_damage(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "clip.mkv", codec="pcm_f32le", rate=8_000, layout="mono", sound_seconds=1.0)
    assert stretches(path, APART)[0].shape == (3, 16_000)
    samples = plain_samples(path)[0][0, 4_000:4_004].tobytes()
    for damage in (np.nan, np.inf, 1e30):
        data = path.read_bytes()
        assert data.count(samples) == 1
        (tmp_path / "bad.mkv").write_bytes(data.replace(samples, np.full(4, damage, np.float32).tobytes()))
        with pytest.raises(SoundError) as refused:
            stretches(tmp_path / "bad.mkv", APART)
        assert refused.value.code == "undecodable_audio"

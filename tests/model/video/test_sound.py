"""Stretches that are sought in a file equal those of a plain decode of its whole sound track."""

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from model.sound import mel_spectrograms
from model.video.container import VideoFile
from model.video.inputs import SoundSpec
from model.video.sound import open_sound, read_stretches
from model.video.spec import FrameSpec, SoundError, SoundFacts, VideoLimits
from tests.clips import h264_mp4
from tests.sound_clips import Samples, plain_stretches, write_clip

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
        ("mkv", "ac3", 48_000, "5.1"),
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

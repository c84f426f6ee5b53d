"""Sampled frames are the selected ones, and bad files are refused with the right code."""

import json
from collections.abc import Callable
from pathlib import Path
from random import Random

import numpy as np
import pytest

from model.video.container import VideoFile, read_timeline
from model.video.reader import open_video
from model.video.spec import FRAME_RULES, FrameSpec, VideoError, VideoFacts, VideoLimits
from tests import clips
from tests.published import clip, golden

LIMITS = VideoLimits()
NUM_FRAMES = 60

ENCODINGS = {
    "every frame a key frame": ("a.mp4", "libx264", {"g": "1"}),
    "B-frames": ("a.mp4", "libx264", {"g": "12", "bf": "3"}),
    "one key frame in all": ("a.mp4", "libx264", {"g": "250"}),
    "open groups": ("a.mp4", "libx264", {"g": "12", "x264-params": "open-gop=1:bframes=3"}),
    "refreshed without key frames": ("a.mp4", "libx264", {"g": "20", "x264-params": "intra-refresh=1"}),
    "HEVC": ("a.mp4", "libx265", {"g": "12", "x265-params": "log-level=none"}),
    "QuickTime": ("a.mov", "mpeg4", {"g": "10", "bf": "2"}),
    "Matroska": ("a.mkv", "libx264", {"g": "12", "bf": "3"}),
    "VP9": ("a.webm", "libvpx-vp9", {"g": "16", "deadline": "realtime", "cpu-used": "8"}),
    "VP8": ("a.webm", "libvpx", {"g": "16", "deadline": "realtime", "cpu-used": "8"}),
    "transport stream": ("a.ts", "libx264", {"g": "12", "bf": "3"}),
    "MPEG-2": ("a.ts", "mpeg2video", {"g": "12", "bf": "2"}),
    "Flash": ("a.flv", "libx264", {"g": "12", "bf": "3"}),
    "AVI": ("a.avi", "mpeg4", {"g": "12"}),
    "AVI, whose B-frames have no times": ("a.avi", "libx264", {"g": "12", "bf": "3"}),
    "Motion JPEG": ("a.avi", "mjpeg", {"q": "2"}),
}


def sampled(path: Path, spec: FrameSpec) -> tuple[list[int], list[int]]:
    """The frame numbers of `spec`, and those drawn into the pictures."""
    with open_video(path, LIMITS) as video:
        frames = list(video.frames(spec))
    return [frame.index for frame in frames], [clips.read_number(frame.rgb) for frame in frames]


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_each_frame_is_the_selected_one(encoding: str, tmp_path: Path) -> None:
    name, codec, options = ENCODINGS[encoding]
    pictures = clips.numbered_pictures(NUM_FRAMES)
    path = clips.write_video(tmp_path / name, pictures, codec=codec, options=options)
    for count in (1, 3, 8, 64):
        indices, numbers = sampled(path, FrameSpec(count=count))
        assert indices == FRAME_RULES["videochat"](NUM_FRAMES, count)
        assert numbers == indices


def test_variable_rates_are_sampled_by_number_with_true_timestamps(tmp_path: Path) -> None:
    path = clips.vfr_mp4(tmp_path / "uneven.mp4", frames=40)
    indices, numbers = sampled(path, FrameSpec(count=16))
    assert numbers == indices == FRAME_RULES["videochat"](40, 16)
    with open_video(path, LIMITS) as video:
        timestamps = {frame.index: frame.timestamp for frame in video.frames(FrameSpec(count=64))}
    assert [round(timestamps[index], 3) for index in range(5)] == [0.0, 0.04, 0.08, 0.24, 0.28]


def test_an_interval_selects_the_frames_within_its_seconds(tmp_path: Path) -> None:
    path = clips.vfr_mp4(tmp_path / "uneven.mp4", frames=40)
    # Shown at 0.24, 0.28, 0.32 and 0.48 s.
    indices, numbers = sampled(path, FrameSpec(count=4, start=0.2, end=0.5))
    assert numbers == indices == [3, 4, 5, 5] == [3 + index for index in FRAME_RULES["videochat"](4, 4)]


def test_frames_left_out_by_an_edit_list_do_not_count(tmp_path: Path) -> None:
    whole = clips.write_video(tmp_path / "whole.mp4", clips.numbered_pictures(60), options={"g": "24", "bf": "3"})
    path = clips.trimmed_copy(whole, tmp_path / "trimmed.mp4", frames=12)
    with open_video(path, LIMITS) as video:
        assert video.facts.num_frames == 48
        frames = list(video.frames(FrameSpec(count=8)))
    assert [clips.read_number(frame.rgb) for frame in frames] == [12 + frame.index for frame in frames]


def test_frames_that_are_decoded_but_never_shown_do_not_count(tmp_path: Path) -> None:
    hidden = {5, 20, 41}
    shown = [number for number in range(60) if number not in hidden]
    path = clips.hidden_frames_webm(tmp_path / "a.webm", frames=60, hidden=hidden)
    with open_video(path, LIMITS) as video:
        assert video.facts.num_frames == 57
        frames = list(video.frames(FrameSpec(count=20)))
    assert [clips.read_number(frame.rgb) for frame in frames] == [shown[frame.index] for frame in frames]


def test_a_video_can_be_sampled_again_and_backwards(tmp_path: Path) -> None:
    path = clips.write_video(tmp_path / "a.mp4", clips.numbered_pictures(60))
    with open_video(path, LIMITS) as video:
        for spec in (FrameSpec(count=3, start=1.5), FrameSpec(count=3), FrameSpec(count=1, end=0.1)):
            frames = list(video.frames(spec))
            assert [clips.read_number(frame.rgb) for frame in frames] == [frame.index for frame in frames]


def test_a_long_video_of_constant_rate_is_not_read_through(tmp_path: Path) -> None:
    noise = np.random.default_rng(0)
    pictures = (noise.integers(0, 255, (96, 160, 3), np.uint8) for _ in range(300))
    path = clips.write_video(tmp_path / "noise.mp4", pictures, options={"g": "10", "preset": "ultrafast"})
    before = _bytes_read()
    with open_video(path, LIMITS) as video:
        assert len(list(video.frames(FrameSpec(count=4)))) == 4
    assert _bytes_read() - before < path.stat().st_size / 3


def _bytes_read() -> int:
    counters = Path("/proc/self/io")
    if not counters.is_file():
        pytest.skip("the kernel does not count what a process reads")
    return int(counters.read_text().split()[1])


def test_a_wrong_rate_in_the_index_is_detected(tmp_path: Path) -> None:
    path = clips.misindexed_mp4(tmp_path / "a.mp4")
    indices, numbers = sampled(path, FrameSpec(count=8))
    assert numbers == indices


@pytest.mark.parametrize(("degrees", "corner"), [(0, (0, -1)), (90, (0, 0)), (180, (-1, 0)), (270, (-1, -1))])
def test_pictures_are_rotated_as_displayed(degrees: int, corner: tuple[int, int], tmp_path: Path) -> None:
    path = clips.rotated_mp4(tmp_path / "turned.mp4", degrees)
    with open_video(path, LIMITS) as video:
        frame = next(iter(video.frames(FrameSpec(count=1))))
    height, width = (160, 96) if degrees % 180 else (96, 160)
    assert (video.facts.width, video.facts.height, video.facts.rotation) == (width, height, degrees)
    assert frame.rgb.shape == (height, width, 3)
    # The red block is stored in the top right corner, and rotated counterclockwise.
    row, column = (4 if at == 0 else -4 for at in corner)
    red, green, blue = frame.rgb[row, column].tolist()
    assert min(red, 150) - max(green, blue) > 50


def test_facts_are_those_of_the_file(tmp_path: Path) -> None:
    with open_video(clips.h264_mp4(tmp_path / "a.mp4", frames=48, fps=24), LIMITS) as video:
        assert video.facts == VideoFacts(
            duration=2.0, width=160, height=96, fps=24.0, num_frames=48, codec="h264", rotation=0
        )
    with open_video(clips.vp9_webm(tmp_path / "a.webm", frames=24), LIMITS) as video:
        assert (video.facts.codec, video.facts.num_frames, video.facts.fps) == ("vp9", 24, 24.0)
    with open_video(clips.mpeg4_avi(tmp_path / "a.avi", frames=24), LIMITS) as video:
        assert (video.facts.codec, video.facts.num_frames, video.facts.duration) == ("mpeg4", 24, 1.0)


def test_sound_beside_the_pictures_changes_nothing(tmp_path: Path) -> None:
    path = clips.write_video(tmp_path / "a.mp4", clips.numbered_pictures(60), sound=True)
    indices, numbers = sampled(path, FrameSpec(count=8))
    assert numbers == indices == FRAME_RULES["videochat"](60, 8)


@pytest.mark.parametrize("name", ["yoga", "jesse_dance"])
def test_the_published_clips_give_the_published_numbers(name: str) -> None:
    expected = json.loads((golden("videochat-preproc") / "videos.json").read_text())["videos"][name]
    with open_video(clip(f"{name}.mp4"), LIMITS) as video:
        assert video.facts.num_frames == expected["num_frames"]
        assert video.facts.fps == expected["fps"]
        assert (video.facts.width, video.facts.height) == (expected["width"], expected["height"])
    with VideoFile(clip(f"{name}.mp4")) as file:
        order = read_timeline(file, LIMITS)
    for count in (8, 16):
        assert order.select(FrameSpec(count=count)) == expected["segments"][str(count)]["indices"]


BAD_FILES: dict[str, tuple[Callable[[Path], Path], set[str]]] = {
    "an empty file": (clips.empty_file, {"not_a_video"}),
    "a text": (clips.text_file, {"not_a_video"}),
    "sound only": (clips.audio_only_mp4, {"no_video_stream"}),
    "a song with a cover": (clips.song_with_cover, {"no_video_stream"}),
    "no frame at all": (clips.zero_frame_mp4, {"no_frames"}),
    "the first half of a file": (clips.truncated_mp4, {"not_a_video", "undecodable"}),
    "a file that promises more than it holds": (clips.cut_mp4, {"undecodable"}),
    "an unknown codec": (clips.unsupported_avi, {"unsupported_codec"}),
    "a picture that is too wide": (clips.wide_mp4, {"too_large"}),
    "a frame that swells when it is decoded": (clips.swollen_webm, {"undecodable"}),
}


@pytest.mark.parametrize("what", BAD_FILES)
def test_a_bad_file_is_refused_with_its_code_and_our_message(what: str, tmp_path: Path) -> None:
    make, codes = BAD_FILES[what]
    path = make(tmp_path / "upload.mp4")
    with pytest.raises(VideoError) as refused, open_video(path, LIMITS) as video:
        list(video.frames(FrameSpec()))
    assert refused.value.code in codes
    assert not any(word in str(refused.value) for word in ("upload", "Errno", "avcodec", str(tmp_path)))


def test_a_title_that_is_not_text_is_ignored(tmp_path: Path) -> None:
    path = clips.strangely_titled_mkv(tmp_path / "a.mkv")
    with open_video(path, LIMITS) as video:
        assert video.facts.num_frames == 24


def test_a_damaged_file_gives_frames_or_a_video_error(tmp_path: Path) -> None:
    random = Random(0)
    whole = [
        clips.write_video(tmp_path / name, clips.numbered_pictures(24), codec=codec).read_bytes()
        for name, codec in (("a.mp4", "libx264"), ("a.webm", "libvpx"), ("a.ts", "libx264"), ("a.avi", "mpeg4"))
    ]
    refusals = 0
    for _ in range(100):
        damaged = bytearray(random.choice(whole))
        for _ in range(random.choice((1, 5, 25))):
            damaged[random.randrange(len(damaged))] = random.randrange(256)
        (tmp_path / "damaged").write_bytes(damaged[: random.randrange(len(damaged) // 2, 2 * len(damaged))])
        try:
            with open_video(tmp_path / "damaged", LIMITS) as video:
                assert len(list(video.frames(FrameSpec()))) == 8
        except (VideoError, MemoryError):
            refusals += 1
    assert 0 < refusals < 100


def test_a_script_cannot_make_us_read_another_file(tmp_path: Path) -> None:
    secret = clips.write_video(tmp_path / "secret.ts", clips.numbered_pictures(20))
    script = clips.ffconcat_script(tmp_path / "innocent.mp4", secret)
    with pytest.raises(VideoError) as refused, open_video(script, LIMITS):
        pass
    assert refused.value.code == "not_a_video"


def test_a_path_is_never_treated_as_a_url(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    clips.h264_mp4(Path("a.mp4"), frames=12)
    clips.h264_mp4(Path("b.mp4"), frames=24).rename("concat:a.mp4")
    with open_video(Path("concat:a.mp4"), LIMITS) as video:
        assert video.facts.num_frames == 24


@pytest.mark.parametrize(
    ("limits", "code"),
    [
        (VideoLimits(max_side=100), "too_large"),
        (VideoLimits(max_pixels=100 * 100), "too_large"),
        (VideoLimits(max_duration=1.5), "too_long"),
        (VideoLimits(max_frames=47), "too_long"),
    ],
)
@pytest.mark.parametrize("name", ["a.mp4", "a.mkv"])
def test_a_file_over_a_limit_is_refused_when_opened(limits: VideoLimits, code: str, name: str, tmp_path: Path) -> None:
    path = clips.h264_mp4(tmp_path / name, frames=48, fps=24)
    with pytest.raises(VideoError) as refused, open_video(path, limits):
        pass
    assert refused.value.code == code


def test_a_truncated_file_gives_the_frames_that_it_holds(tmp_path: Path) -> None:
    path = clips.cut_mp4(tmp_path / "cut.mp4", keep=0.5)
    indices, numbers = sampled(path, FrameSpec(count=4, end=1.0))
    assert numbers == indices == FRAME_RULES["videochat"](24, 4)


def test_an_interval_without_a_frame_is_refused(tmp_path: Path) -> None:
    with open_video(clips.h264_mp4(tmp_path / "a.mp4"), LIMITS) as video, pytest.raises(VideoError) as refused:
        list(video.frames(FrameSpec(start=100.0)))
    assert refused.value.code == "empty_interval"


def test_the_index_of_an_mp4_gives_the_same_timeline_as_its_packets(tmp_path: Path) -> None:
    pictures = list(clips.numbered_pictures(30))
    with (
        VideoFile(clips.write_video(tmp_path / "a.mp4", pictures)) as mp4,
        VideoFile(clips.write_video(tmp_path / "a.mkv", pictures)) as mkv,
    ):
        by_index, by_packets = read_timeline(mp4, LIMITS), read_timeline(mkv, LIMITS)
    assert by_index.num_frames == by_packets.num_frames == 30
    assert by_index.keys.tolist() == by_packets.keys.tolist() == [0, 12, 24]
    np.testing.assert_allclose(by_index.timestamps(), by_packets.timestamps(), atol=1e-3)

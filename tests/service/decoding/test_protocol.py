"""Requests and replies arrive as they were sent, and every reply of a child is checked."""

import json
from dataclasses import replace
from typing import Any

import pytest

from model.video.inputs import InputSpec, SoundSpec
from model.video.pixels import PixelSpec
from model.video.spec import FrameSpec, SoundFacts, VideoFacts, VideoLimits
from service.decoding.protocol import (
    PREFIX,
    DecodeProgress,
    DecodeReply,
    DecodeRequest,
    Probed,
    ProtocolViolation,
    Rejected,
    Sampled,
    read_lengths,
    read_reply,
    read_request,
    write_reply,
    write_request,
)

REQUEST = DecodeRequest(
    path="/uploads/a film.mp4",
    inputs=InputSpec(frames=FrameSpec(count=2, start=0.5), pixels=PixelSpec(size=4, fit="squash")),
    limits=VideoLimits(max_frames=10),
    thumbnail_side=320,
    memory_bytes=1 << 30,
    cpu_seconds=30,
    seccomp=True,
)
HEARING = replace(REQUEST, inputs=replace(REQUEST.inputs, sound=SoundSpec(count=2, seconds=1, rate=4)))
FACTS = VideoFacts(duration=2.5, width=320, height=240, fps=24.0, num_frames=60, codec="h264", rotation=90)
SAMPLED = Sampled(
    indices=(3, 9),
    timestamps=(0.125, 0.375),
    frames=bytes(range(96)),
    thumbnails=(b"first", b"and second"),
    preprocess_seconds=0.25,
)


def test_a_request_arrives_as_it_was_sent_and_is_one_line() -> None:
    line = write_request(REQUEST)
    assert line.index(b"\n") == len(line) - 1
    assert read_request(line) == REQUEST


@pytest.mark.parametrize(
    "reply",
    [
        Probed(facts=FACTS, audio=None, audio_error="no_audio_stream"),
        Probed(facts=FACTS, audio=SoundFacts(codec="pcm_s16le", rate=8000, channels=1), audio_error=None),
        DecodeProgress(done=1, total=2),
        DecodeProgress(done=1, total=1),
        SAMPLED,
        Sampled(indices=(0,), timestamps=(0.0,), frames=bytes(48), thumbnails=(b"only",), preprocess_seconds=0.0),
        Rejected(code="too_long", message="The video is longer than 60 seconds."),
    ],
)
def test_a_reply_arrives_as_it_was_sent(reply: DecodeReply) -> None:
    data = write_reply(reply)
    header, payload = read_lengths(data[: PREFIX.size], REQUEST)
    rest = data[PREFIX.size :]
    assert len(rest) == header + payload
    assert read_reply(rest[:header], rest[header:], REQUEST) == reply


@pytest.mark.parametrize(
    "reply",
    [
        replace(SAMPLED, sound=bytes(32)),
        replace(SAMPLED, sound=bytes(8)),
        replace(SAMPLED, audio_error="audio_too_short"),
    ],
)
def test_a_reply_with_sound_or_the_reason_why_there_is_none_arrives_as_it_was_sent(reply: Sampled) -> None:
    data = write_reply(reply)
    header, payload = read_lengths(data[: PREFIX.size], HEARING)
    rest = data[PREFIX.size :]
    assert len(rest) == header + payload
    assert read_reply(rest[:header], rest[header:], HEARING) == reply


@pytest.mark.parametrize(
    "reply",
    [
        SAMPLED,
        replace(SAMPLED, sound=bytes(40)),
        replace(SAMPLED, sound=bytes(30)),
        replace(SAMPLED, sound=b""),
        replace(SAMPLED, sound=bytes(32), audio_error="audio_too_short"),
        replace(SAMPLED, audio_error="not_a_video"),  # type: ignore[arg-type]
    ],
)
def test_sound_that_does_not_fit_the_request_is_a_violation(reply: Sampled) -> None:
    data = write_reply(reply)
    header, _ = PREFIX.unpack(data[: PREFIX.size])
    rest = data[PREFIX.size :]
    with pytest.raises(ProtocolViolation):
        read_reply(rest[:header], rest[header:], HEARING)


@pytest.mark.parametrize("reply", [replace(SAMPLED, sound=bytes(32)), replace(SAMPLED, audio_error="no_audio_stream")])
def test_sound_that_is_not_requested_is_a_violation(reply: Sampled) -> None:
    data = write_reply(reply)
    header, _ = PREFIX.unpack(data[: PREFIX.size])
    rest = data[PREFIX.size :]
    with pytest.raises(ProtocolViolation):
        read_reply(rest[:header], rest[header:], REQUEST)


def test_sound_counts_in_the_longest_payload() -> None:
    longest = 2 * 48 + 2 * (1 << 20)
    assert read_lengths(PREFIX.pack(100, longest + 32), HEARING) == (100, longest + 32)
    for request, length in ((HEARING, longest + 33), (REQUEST, longest + 1)):
        with pytest.raises(ProtocolViolation):
            read_lengths(PREFIX.pack(100, length), request)


@pytest.mark.parametrize(("header", "payload"), [(1 << 17, 0), (100, 1 << 31)])
def test_lengths_that_no_valid_reply_has_are_refused(header: int, payload: int) -> None:
    with pytest.raises(ProtocolViolation):
        read_lengths(PREFIX.pack(header, payload), REQUEST)


SAMPLED_HEADER = {
    "kind": "Sampled",
    "indices": [3, 9],
    "timestamps": [0.1, 0.3],
    "thumbnail_sizes": [5, 10],
    "preprocess_seconds": 0.1,
}
AUDIO = {"codec": "aac", "rate": 8000, "channels": 2}
FACTS_HEADER = {"duration": 2.5, "width": 3, "height": 2, "fps": 24.0, "num_frames": 60, "codec": "h264", "rotation": 0}


PROBED_HEADER = {"kind": "Probed", "facts": FACTS_HEADER, "audio": AUDIO, "audio_error": None}


@pytest.mark.parametrize(
    ("header", "payload"),
    [
        ([], b""),
        ({}, b""),
        ({"kind": "Surprise"}, b""),
        ({"done": 1, "total": 2}, b""),
        ({"kind": "DecodeProgress", "done": 1, "total": 2, "more": 1}, b""),
        ({"kind": "DecodeProgress", "done": 1, "total": 3}, b""),
        ({"kind": "DecodeProgress", "done": 0, "total": 0}, b""),
        ({"kind": "DecodeProgress", "done": True, "total": 2}, b""),
        ({"kind": "DecodeProgress", "done": 1, "total": 2}, b"and more"),
        ({"kind": "Rejected", "code": "i_say_so", "message": "No."}, b""),
        ({"kind": "Rejected", "code": "too_long", "message": "x" * 1000}, b""),
        ({"kind": "Rejected", "code": "too_long", "message": "two\nlines"}, b""),
        (PROBED_HEADER | {"facts": FACTS_HEADER | {"fps": float("nan")}}, b""),
        (PROBED_HEADER | {"facts": FACTS_HEADER | {"duration": float("inf")}}, b""),
        (PROBED_HEADER | {"facts": FACTS_HEADER | {"width": -1}}, b""),
        (PROBED_HEADER | {"facts": FACTS_HEADER | {"codec": "<script>"}}, b""),
        (PROBED_HEADER | {"facts": FACTS_HEADER | {"codec": ""}}, b""),
        (PROBED_HEADER | {"facts": FACTS_HEADER | {"rotation": 45}}, b""),
        (PROBED_HEADER | {"facts": FACTS_HEADER | {"num_frames": 0}}, b""),
        (PROBED_HEADER | {"facts": FACTS_HEADER | {"num_frames": 2**31}}, b""),
        (PROBED_HEADER | {"facts": FACTS_HEADER | {"more": 1}}, b""),
        (PROBED_HEADER | {"facts": {}}, b""),
        (PROBED_HEADER | {"audio": None}, b""),
        (PROBED_HEADER | {"audio_error": "no_audio_stream"}, b""),
        (PROBED_HEADER | {"audio": AUDIO | {"rate": 0}}, b""),
        (PROBED_HEADER | {"audio": AUDIO | {"codec": "<b>"}}, b""),
        (PROBED_HEADER | {"audio": None, "audio_error": "it is late"}, b""),
        (SAMPLED_HEADER, bytes(96 + 14)),
        (SAMPLED_HEADER, bytes(96 + 16)),
        (SAMPLED_HEADER | {"indices": [], "timestamps": [], "thumbnail_sizes": []}, b""),
        (SAMPLED_HEADER | {"indices": [3]}, bytes(96 + 15)),
        (SAMPLED_HEADER | {"indices": [3, "9"]}, bytes(96 + 15)),
        (SAMPLED_HEADER | {"preprocess_seconds": float("nan")}, bytes(96 + 15)),
        (SAMPLED_HEADER | {"preprocess_seconds": -1}, bytes(96 + 15)),
        (SAMPLED_HEADER | {"timestamps": [0.1, None]}, bytes(96 + 15)),
        (SAMPLED_HEADER | {"thumbnail_sizes": [-5, 20]}, bytes(96 + 15)),
        (SAMPLED_HEADER | {"thumbnail_sizes": [(1 << 20) + 1, 0]}, bytes(96 + (1 << 20) + 1)),
    ],
)
def test_a_reply_that_does_not_fit_is_a_violation(header: Any, payload: bytes) -> None:
    with pytest.raises(ProtocolViolation):
        read_reply(json.dumps(header).encode(), payload, REQUEST)


def test_a_header_that_is_not_json_is_a_violation() -> None:
    nested = b"[" * 60_000
    for header in (b"", b"\xff\xfe", b"{", nested, b'{"a":' + nested, b'{"kind":"DecodeProgress","done":' + nested):
        with pytest.raises(ProtocolViolation):
            read_reply(header, b"", REQUEST)

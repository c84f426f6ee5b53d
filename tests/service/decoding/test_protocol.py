"""Requests and replies arrive as they were sent, and every reply of a child is checked."""

import json
from typing import Any

import pytest

from model.video.inputs import InputSpec
from model.video.pixels import PixelSpec
from model.video.spec import FrameSpec, VideoFacts, VideoLimits
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
        Probed(facts=FACTS),
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
FACTS_HEADER = {"duration": 2.5, "width": 3, "height": 2, "fps": 24.0, "num_frames": 60, "codec": "h264", "rotation": 0}


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
        ({"kind": "Probed", "facts": FACTS_HEADER | {"fps": float("nan")}}, b""),
        ({"kind": "Probed", "facts": FACTS_HEADER | {"duration": float("inf")}}, b""),
        ({"kind": "Probed", "facts": FACTS_HEADER | {"width": -1}}, b""),
        ({"kind": "Probed", "facts": FACTS_HEADER | {"codec": "<script>"}}, b""),
        ({"kind": "Probed", "facts": FACTS_HEADER | {"codec": ""}}, b""),
        ({"kind": "Probed", "facts": FACTS_HEADER | {"rotation": 45}}, b""),
        ({"kind": "Probed", "facts": FACTS_HEADER | {"num_frames": 0}}, b""),
        ({"kind": "Probed", "facts": FACTS_HEADER | {"num_frames": 2**31}}, b""),
        ({"kind": "Probed", "facts": FACTS_HEADER | {"more": 1}}, b""),
        ({"kind": "Probed", "facts": {}}, b""),
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

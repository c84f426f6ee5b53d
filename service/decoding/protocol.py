"""What the API process and a decode child say to each other: frozen dataclasses. No asyncio, PyAV or pickle.

The request is one line of JSON. Every reply is two lengths, a JSON header and raw bytes. The child has read a
stranger's file, so nothing that it says is believed unchecked: what does not fit raises `ProtocolBreach`.
"""

import json
import math
import struct
from dataclasses import asdict, dataclass
from typing import Any, get_args

from model.video.pixels import PixelSpec
from model.video.spec import FrameSpec, VideoErrorCode, VideoFacts, VideoLimits

PREFIX = struct.Struct(">II")
"""Length of the header and of the bytes that follow it."""
MAX_HEADER = 1 << 16
MAX_THUMBNAIL = 1 << 20
MAX_MESSAGE = 300


class ProtocolBreach(Exception):
    """The child said something that it should not have."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DecodeRequest:
    """One upload to decode, and what the child may spend on it."""

    path: str
    frame_spec: FrameSpec
    pixel_spec: PixelSpec
    limits: VideoLimits
    thumbnail_side: int
    memory_bytes: int
    cpu_seconds: int
    locked: bool
    """Whether the child must put itself behind the kernel's filter, or fail."""

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """[frames, size, size, 3] of the answer; a frame rule may take fewer frames of a short video."""
        return (self.frame_spec.count, self.pixel_spec.size, self.pixel_spec.size, 3)


@dataclass(frozen=True, kw_only=True, slots=True)
class Probed:
    """The file is a video; this is what it says of itself."""

    facts: VideoFacts


@dataclass(frozen=True, kw_only=True, slots=True)
class Progress:
    """So many of the wanted frames are decoded."""

    done: int
    total: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Sampled:
    """All wanted frames: raw uint8 pixels [frames, size, size, 3], and a JPEG thumbnail of each."""

    indices: tuple[int, ...]
    timestamps: tuple[float, ...]
    frames: bytes
    thumbnails: tuple[bytes, ...]
    preprocess_seconds: float
    """Of all the time it took, how much went into resizing."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Rejected:
    """The file cannot be used; code and message as in `VideoError`."""

    code: VideoErrorCode
    message: str


Reply = Probed | Progress | Sampled | Rejected


def write_request(request: DecodeRequest) -> bytes:
    """One line of JSON."""
    return json.dumps(asdict(request)).encode() + b"\n"


def read_request(line: bytes) -> DecodeRequest:
    """The reverse of `write_request`."""
    values = json.loads(line)
    values["frame_spec"] = FrameSpec(**values["frame_spec"])
    pixels = values["pixel_spec"]
    values["pixel_spec"] = PixelSpec(**pixels | {"mean": tuple(pixels["mean"]), "std": tuple(pixels["std"])})
    values["limits"] = VideoLimits(**values["limits"])
    return DecodeRequest(**values)


def write_reply(reply: Reply) -> bytes:
    """Lengths, header and bytes of one reply."""
    values = asdict(reply)
    payload = b""
    if isinstance(reply, Sampled):
        payload = b"".join([values.pop("frames"), *values.pop("thumbnails")])
        values["thumbnail_sizes"] = [len(thumbnail) for thumbnail in reply.thumbnails]
    header = json.dumps({"kind": type(reply).__name__, **values}).encode()
    return PREFIX.pack(len(header), len(payload)) + header + payload


def read_lengths(prefix: bytes, request: DecodeRequest) -> tuple[int, int]:
    """How many bytes of header and payload follow; both bounded by what `request` can be answered with."""
    header, payload = PREFIX.unpack(prefix)
    most = math.prod(request.shape) + request.frame_spec.count * MAX_THUMBNAIL
    if header > MAX_HEADER or payload > most:
        raise ProtocolBreach("A reply is too long.")
    return header, payload


def read_reply(header: bytes, payload: bytes, request: DecodeRequest) -> Reply:
    """One reply to `request`.

    Raises:
        ProtocolBreach: it is not well formed, or does not fit the request.
    """
    try:
        values = json.loads(header)
        kind = values.pop("kind")
        if kind == "Sampled":
            return _read_sampled(values, payload, request)
        _check(payload == b"")
        if kind == "Probed":
            return Probed(facts=_read_facts(values["facts"]))
        if kind == "Progress":
            return Progress(done=_whole(values["done"]), total=_read_count(values["total"], request))
        _check(kind == "Rejected" and values["code"] in get_args(VideoErrorCode))
        return Rejected(code=values["code"], message=_text(values["message"]))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise ProtocolBreach("A reply is not well formed.") from None


def _read_facts(values: dict[str, Any]) -> VideoFacts:
    facts = VideoFacts(
        duration=_finite(values["duration"]),
        width=_whole(values["width"]),
        height=_whole(values["height"]),
        fps=_finite(values["fps"]),
        num_frames=_whole(values["num_frames"]),
        codec=_text(values["codec"]),
        rotation=_whole(values["rotation"]),
    )
    _check(facts.rotation in {0, 90, 180, 270} and facts.codec.isalnum() and facts.num_frames > 0)
    return facts


def _read_sampled(values: dict[str, Any], payload: bytes, request: DecodeRequest) -> Sampled:
    count = _read_count(len(values["indices"]), request)
    pixels = count * math.prod(request.shape[1:])
    sizes = [_whole(size) for size in values["thumbnail_sizes"]]
    _check(len(sizes) == len(values["timestamps"]) == count)
    _check(max(sizes) <= MAX_THUMBNAIL and pixels + sum(sizes) == len(payload))
    ends = [pixels + sum(sizes[: place + 1]) for place in range(count)]
    return Sampled(
        indices=tuple(_whole(index) for index in values["indices"]),
        timestamps=tuple(_finite(timestamp) for timestamp in values["timestamps"]),
        frames=payload[:pixels],
        thumbnails=tuple(payload[end - size : end] for end, size in zip(ends, sizes, strict=True)),
        preprocess_seconds=_finite(values["preprocess_seconds"]),
    )


def _read_count(value: object, request: DecodeRequest) -> int:
    count = _whole(value)
    _check(1 <= count <= request.frame_spec.count)
    return count


def _check(fits: bool) -> None:  # noqa: FBT001 - a condition, not a mode
    if not fits:
        raise ValueError


def _whole(value: object) -> int:
    if type(value) is not int or not 0 <= value < 2**31:
        raise ValueError
    return value


def _finite(value: object) -> float:
    if type(value) is not int and type(value) is not float:
        raise ValueError
    if not 0 <= value < 2**31:  # NaN is not, either
        raise ValueError
    return float(value)


def _text(value: object) -> str:
    if type(value) is not str or len(value) > MAX_MESSAGE or not value.isprintable():
        raise ValueError
    return value

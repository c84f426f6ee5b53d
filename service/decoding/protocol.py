"""The messages between the API process and a decode child: frozen, and checked when they are read.

The request is one line of JSON. A reply is two lengths, a JSON header and a payload of raw bytes. The child reads
untrusted files, so the parent validates every reply; one that is malformed or does not fit the request raises
`ProtocolViolation`. This module imports neither asyncio nor PyAV nor pickle.
"""

import struct
from dataclasses import asdict, dataclass
from typing import Annotated, Literal

import msgspec
from msgspec import Meta, Struct

from model.video.inputs import InputSpec
from model.video.spec import SoundErrorCode, SoundFacts, VideoErrorCode, VideoFacts, VideoLimits

PREFIX = struct.Struct(">II")
"""The lengths of a reply's header and payload, in bytes."""
MAX_HEADER = 1 << 16
"""Bytes of a header."""
MAX_THUMBNAIL = 1 << 20
"""Bytes of one thumbnail."""
SAMPLE_BYTES = 4
"""Bytes of one sample of sound, a float32."""
MAX_MESSAGE = 300
"""Characters of a rejection's message."""

_Whole = Annotated[int, Meta(ge=0, lt=2**31)]
_Count = Annotated[int, Meta(ge=1, lt=2**31)]
_Number = Annotated[float, Meta(ge=0, lt=2**31)]
"""Finite: JSON has no NaN and no infinity."""
_CodecName = Annotated[str, Meta(pattern=r"\A[0-9A-Za-z_]+\Z", max_length=MAX_MESSAGE)]


class ProtocolViolation(Exception):
    """A child sent something that the protocol does not allow."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DecodeRequest:
    """One upload to decode, and the resources that the child may use for it."""

    path: str
    inputs: InputSpec
    limits: VideoLimits
    thumbnail_side: int
    """The longest side of a thumbnail, in pixels."""
    memory_bytes: int
    cpu_seconds: int
    seccomp: bool
    """Whether the child must install the seccomp filter, or fail."""

    @property
    def max_frames(self) -> int:
        """The most frames that the reply may have; a short video may give fewer."""
        return self.inputs.frames.count

    @property
    def max_sound(self) -> int:
        """The most bytes of sound that the reply may have."""
        sound = self.inputs.sound
        return 0 if sound is None else sound.count * sound.max_samples * SAMPLE_BYTES


class _Header(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="kind"):
    """The JSON header of a reply."""


class DecodeProgress(_Header, frozen=True, tag="DecodeProgress"):
    """`done` of `total` frames are decoded."""

    done: _Whole
    total: _Count


class Rejected(_Header, frozen=True, tag="Rejected"):
    """The file cannot be used; code and message are those of a `VideoError`."""

    code: VideoErrorCode
    message: Annotated[str, Meta(max_length=MAX_MESSAGE)]

    def __post_init__(self) -> None:
        if not self.message.isprintable():
            raise ValueError("The message has control characters.")


@dataclass(frozen=True, kw_only=True, slots=True)
class Probed:
    """The file is a video, and these are its properties and those of its sound."""

    facts: VideoFacts
    audio: SoundFacts | None
    """None without a sound track that can be used; `audio_error` is the reason."""
    audio_error: SoundErrorCode | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Sampled:
    """The requested frames, with a JPEG thumbnail of each, and the requested sound."""

    indices: tuple[int, ...]
    timestamps: tuple[float, ...]
    """Seconds after the first frame of the video."""
    frames: bytes
    """Levels [frames * crops, size, size, 3] in the dtype of the request's pixel spec."""
    thumbnails: tuple[bytes, ...]
    preprocess_seconds: float
    """The part of the decoding time that was spent on resizing."""
    sound: bytes | None = None
    """float32 [count, samples] for the request's sound spec; None without sound, or if none is requested."""
    audio_error: SoundErrorCode | None = None
    """Why there is no sound although it is requested."""


DecodeReply = Probed | DecodeProgress | Sampled | Rejected


class _Facts(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`VideoFacts`, with bounds."""

    duration: _Number
    width: _Whole
    height: _Whole
    fps: _Number
    num_frames: _Count
    codec: _CodecName
    rotation: Literal[0, 90, 180, 270]


class _Audio(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`SoundFacts`, with bounds."""

    codec: _CodecName
    rate: _Count
    channels: _Count


class _ProbedHeader(_Header, frozen=True, tag="Probed"):
    facts: _Facts
    audio: _Audio | None
    audio_error: SoundErrorCode | None


class _SampledHeader(_Header, frozen=True, tag="Sampled"):
    """All of `Sampled` but its bytes: the payload has the frames, then the thumbnails, then the sound."""

    indices: tuple[_Whole, ...]
    timestamps: tuple[_Number, ...]
    thumbnail_sizes: tuple[Annotated[int, Meta(ge=0, le=MAX_THUMBNAIL)], ...]
    preprocess_seconds: _Number
    sound_size: Annotated[int, Meta(ge=1, lt=2**31)] | None = None
    audio_error: SoundErrorCode | None = None


_AnyHeader = _ProbedHeader | DecodeProgress | _SampledHeader | Rejected
_HEADER_DECODER: msgspec.json.Decoder[_AnyHeader] = msgspec.json.Decoder(_AnyHeader)
_REQUEST_DECODER = msgspec.json.Decoder(DecodeRequest)
_ENCODER = msgspec.json.Encoder()


def write_request(request: DecodeRequest) -> bytes:
    """Encode a request as one line of JSON."""
    return _ENCODER.encode(request) + b"\n"


def read_request(line: bytes) -> DecodeRequest:
    """Decode a request; the reverse of `write_request`."""
    return _REQUEST_DECODER.decode(line)


def write_reply(reply: DecodeReply) -> bytes:
    """Encode a reply: its lengths, its header and its payload."""
    payload = b"".join([reply.frames, *reply.thumbnails, reply.sound or b""]) if isinstance(reply, Sampled) else b""
    header = _ENCODER.encode(_header(reply))
    return PREFIX.pack(len(header), len(payload)) + header + payload


def _header(reply: DecodeReply) -> _AnyHeader:
    match reply:
        case Probed(facts=facts, audio=audio, audio_error=audio_error):
            return _ProbedHeader(
                facts=_Facts(**asdict(facts)),
                audio=None if audio is None else _Audio(**asdict(audio)),
                audio_error=audio_error,
            )
        case Sampled():
            return _SampledHeader(
                indices=reply.indices,
                timestamps=reply.timestamps,
                thumbnail_sizes=tuple(len(thumbnail) for thumbnail in reply.thumbnails),
                preprocess_seconds=reply.preprocess_seconds,
                sound_size=None if reply.sound is None else len(reply.sound),
                audio_error=reply.audio_error,
            )
        case DecodeProgress() | Rejected():
            return reply


def read_lengths(prefix: bytes, request: DecodeRequest) -> tuple[int, int]:
    """Decode the lengths of the header and the payload that follow, in bytes.

    Raises:
        ProtocolViolation: no valid reply to `request` is that long.
    """
    header, payload = PREFIX.unpack(prefix)
    max_payload = request.inputs.pixels.num_bytes(request.max_frames) + request.max_frames * MAX_THUMBNAIL
    max_payload += request.max_sound
    if header > MAX_HEADER or payload > max_payload:
        raise ProtocolViolation("A reply is too long.")
    return header, payload


def read_reply(header: bytes, payload: bytes, request: DecodeRequest) -> DecodeReply:
    """Decode and check one reply to `request`.

    Raises:
        ProtocolViolation: the reply is malformed or does not fit the request.
    """
    try:
        values = _HEADER_DECODER.decode(header)
    except (ValueError, RecursionError):  # msgspec's errors are ValueErrors
        raise ProtocolViolation("A reply is malformed.") from None
    if isinstance(values, _SampledHeader):
        return _sampled(values, payload, request)
    _check(payload == b"")
    match values:
        case _ProbedHeader(facts=facts, audio=audio, audio_error=audio_error):
            _check((audio is None) == (audio_error is not None))
            return Probed(
                facts=VideoFacts(**msgspec.structs.asdict(facts)),
                audio=None if audio is None else SoundFacts(**msgspec.structs.asdict(audio)),
                audio_error=audio_error,
            )
        case DecodeProgress():
            _check(values.total <= request.max_frames)
            return values
        case Rejected():
            return values


def _sampled(header: _SampledHeader, payload: bytes, request: DecodeRequest) -> Sampled:
    count, sizes = len(header.indices), header.thumbnail_sizes
    _check(1 <= count <= request.max_frames)
    _check(len(header.timestamps) == len(sizes) == count)
    pixels = request.inputs.pixels.num_bytes(count)
    sound_size = header.sound_size or 0
    _check_sound(header, request)
    _check(pixels + sum(sizes) + sound_size == len(payload))
    ends = [pixels + sum(sizes[: place + 1]) for place in range(count)]
    return Sampled(
        indices=header.indices,
        timestamps=header.timestamps,
        frames=payload[:pixels],
        thumbnails=tuple(payload[end - size : end] for end, size in zip(ends, sizes, strict=True)),
        preprocess_seconds=header.preprocess_seconds,
        sound=None if header.sound_size is None else payload[len(payload) - sound_size :],
        audio_error=header.audio_error,
    )


def _check_sound(header: _SampledHeader, request: DecodeRequest) -> None:
    """Check that there is sound, or a reason why there is none, exactly if the request asks for sound."""
    spec, size = request.inputs.sound, header.sound_size
    if spec is None:
        _check(size is None and header.audio_error is None)
        return
    _check((size is None) == (header.audio_error is not None))
    _check(size is None or (size <= request.max_sound and size % (spec.count * SAMPLE_BYTES) == 0))


def _check(fits: bool) -> None:  # noqa: FBT001 - a condition, not a mode
    if not fits:
        raise ProtocolViolation("A reply does not fit the request.")

"""Features of clips: their named parts, a fingerprint of how they were made, and a blob with a checksum for the cache.

Uses numpy only, neither Redis nor torch. A worker packs features; every reader of the cache verifies them.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load, save

from model.video.inputs import InputSpec

CHECKSUM_BYTES = 32
VIDEO = "video"
"""The name of the part that is computed from the frames."""
AUDIO = "audio"
"""The name of the part that is computed from the sound."""

Features = Mapping[str, npt.NDArray[np.float16]]
"""The features of one clip: its parts by name, each [rows, width]."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PartSpec:
    """One part of a clip's features: a float16 tensor of `shape`, [rows, width], for any number of frames."""

    name: str
    shape: tuple[int, int]
    optional: bool = False
    """Whether a clip may lack it: a file without sound has no part that is computed from sound."""


class CorruptFeatures(ValueError):
    """A cached blob is damaged or does not match its key; treat it as a cache miss."""


class NonFiniteFeatures(ValueError):
    """An encoder returned infinities or NaNs, which must not be cached."""


def fingerprint(
    *,
    family: str,
    encoder_digest: str,
    inputs: InputSpec,
    preprocessing_version: int,
    dtype: str,
) -> str:
    """Return the SHA-256, hex, of everything that features depend on except the video itself.

    Every field and part of a field is preceded by its length, so that different inputs never give the same bytes.
    Equal numbers give equal bytes, whether they are written 1 or 1.0.
    """
    everything = (family, encoder_digest, inputs, preprocessing_version, dtype)
    return hashlib.sha256(_framed(everything)).hexdigest()


@dataclass(frozen=True, kw_only=True, slots=True)
class PackedFeatures:
    """A verified blob, its parts, and the indices and seconds of the frames that they were computed from."""

    blob: bytes
    parts: frozenset[str]
    """The names of the parts that the blob has."""
    frame_indices: tuple[int, ...]
    timestamps: tuple[float, ...]

    @classmethod
    def checked(cls, blob: bytes, *, key: str, parts: Sequence[PartSpec]) -> "PackedFeatures":
        """Verify that `blob` is intact and was packed under `key`; the features are not unpacked.

        Raises:
            CorruptFeatures: as `verify`.
        """
        present, frames = verify(blob, key=key, parts=parts)
        return cls(
            blob=blob,
            parts=present,
            frame_indices=tuple(frames["indices"]),
            timestamps=tuple(frames["timestamps"]),
        )


def pack(
    features: Features,
    key: str,
    *,
    frame_indices: Sequence[int] = (),
    timestamps: Sequence[float] = (),
) -> bytes:
    """Pack features into a blob for `key`: a SHA-256, then a safetensors file with a tensor for each part.

    The blob also holds the indices and seconds of the frames.

    Raises:
        NonFiniteFeatures: a value is infinite or not a number.
    """
    for array in features.values():
        assert array.dtype == np.float16, array.dtype
        if not np.isfinite(array).all():
            raise NonFiniteFeatures("The encoder gave values that are not finite.")
    frames = json.dumps({"indices": list(frame_indices), "timestamps": list(timestamps)})
    tensors = {name: np.ascontiguousarray(array) for name, array in features.items()}
    body: bytes = save(tensors, metadata={"key": key, "frames": frames})
    return hashlib.sha256(body).digest() + body


def verify(blob: bytes, *, key: str, parts: Sequence[PartSpec]) -> tuple[frozenset[str], dict[str, Any]]:
    """Verify that `blob` is intact and holds these parts and no others, in float16, packed under `key`.

    Returns:
        The names of its parts, which may lack optional ones; and the frames: `indices` and `timestamps`.

    Raises:
        CorruptFeatures: it is damaged or does not match.
    """
    body = memoryview(blob)[CHECKSUM_BYTES:]
    if hashlib.sha256(body).digest() != blob[:CHECKSUM_BYTES]:
        raise CorruptFeatures("The checksum of the cached features is wrong.")
    header = _header(body)
    metadata = header.pop("__metadata__", None)
    if not isinstance(metadata, dict) or metadata.get("key") != key:
        raise CorruptFeatures("The cached features belong to another key.")
    required = {part.name for part in parts if not part.optional}
    if not required <= header.keys() <= {part.name for part in parts}:
        raise CorruptFeatures("The cached features have other parts.")
    for part in parts:
        if part.name not in header:
            continue
        described = header[part.name]
        if not isinstance(described, dict) or described.get("dtype") != "F16":
            raise CorruptFeatures("The cached blob does not hold features in float16.")
        if described.get("shape") != list(part.shape):
            raise CorruptFeatures("The cached features have another shape.")
    return frozenset(header), _frames(metadata.get("frames"))


def unpack(blob: bytes, *, key: str, parts: Sequence[PartSpec]) -> dict[str, npt.NDArray[np.float16]]:
    """Verify `blob` and return its features by part: float16, writable.

    Raises:
        CorruptFeatures: as `verify`.
    """
    verify(blob, key=key, parts=parts)
    try:
        features: dict[str, npt.NDArray[np.float16]] = load(blob[CHECKSUM_BYTES:])
    except (SafetensorError, KeyError) as error:
        raise CorruptFeatures("The cached blob is not a safetensors file.") from error
    return features


def _frames(text: object) -> dict[str, Any]:
    try:
        frames = json.loads(text) if isinstance(text, str) else None
    except ValueError:
        frames = None
    found = frames if isinstance(frames, dict) else {}
    if found.keys() != {"indices", "timestamps"} or not all(isinstance(listed, list) for listed in found.values()):
        raise CorruptFeatures("The cached features do not name their frames.")
    return found


def _header(body: memoryview) -> dict[str, Any]:
    """Parse the header of a safetensors file: a length in eight bytes, little endian, then a JSON object."""
    length = int.from_bytes(body[:8], "little")
    try:
        header = json.loads(bytes(body[8 : 8 + length]))
    except ValueError as error:
        raise CorruptFeatures("The cached blob is not a safetensors file.") from error
    if not isinstance(header, dict):
        raise CorruptFeatures("The cached blob is not a safetensors file.")
    return header


def _framed(value: object) -> bytes:
    """Encode a value with its type and length; injective over texts, numbers, None, tuples and dataclasses of them."""
    match value:
        case None:
            kind, body = b"-", b""
        case str():
            kind, body = b"s", value.encode()
        case int() | float():
            kind, body = b"n", float(value).hex().encode()
        case tuple():
            kind, body = b"t", b"".join(map(_framed, value))
        case _ if is_dataclass(value) and not isinstance(value, type):
            kind, body = b"d", b"".join(_framed_fields(value))
        case _:
            raise TypeError(f"{type(value).__name__} cannot be part of a fingerprint")
    return kind + len(body).to_bytes(8, "big") + body


def _framed_fields(record: Any) -> Iterator[bytes]:
    for field in fields(record):
        yield _framed((field.name, getattr(record, field.name)))

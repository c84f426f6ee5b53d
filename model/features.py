"""Cached features as bytes: the fingerprint that says how they were made, and a blob that checks itself.

numpy only. Knows neither Redis nor torch: a worker packs, whoever reads the cache verifies.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load, save

from model.video.pixels import PixelSpec
from model.video.spec import FrameSpec

CHECKSUM_BYTES = 32
_TENSOR = "features"


class CorruptFeatures(ValueError):
    """A cached blob is damaged, or is not what its key promises; treat it as a miss."""


class NonFiniteFeatures(ValueError):
    """An encoder gave infinities or NaNs; they must not reach the cache."""


def fingerprint(
    *,
    family: str,
    checkpoint_digest: str,
    frame_spec: FrameSpec,
    pixel_spec: PixelSpec,
    preprocessing_version: int,
    dtype: str,
) -> str:
    """SHA-256, hex, of everything but the video itself that features depend on.

    Every field and part of a field is framed by its length, so that no two ways can run into the same bytes;
    equal numbers are equal whether written 1 or 1.0.
    """
    made = (family, checkpoint_digest, frame_spec, pixel_spec, preprocessing_version, dtype)
    return hashlib.sha256(_framed(made)).hexdigest()


@dataclass(frozen=True, kw_only=True, slots=True)
class PackedFeatures:
    """A verified blob, and the frames that its features are of: their numbers and their seconds."""

    blob: bytes
    frame_indices: tuple[int, ...]
    timestamps: tuple[float, ...]

    @classmethod
    def checked(cls, blob: bytes, *, key: str, shape: tuple[int, ...]) -> "PackedFeatures":
        """What `blob` holds, if it is whole and was packed under `key`; the features themselves stay bytes.

        Raises:
            CorruptFeatures: as `verify`.
        """
        frames = verify(blob, key=key, shape=shape)
        return cls(blob=blob, frame_indices=tuple(frames["indices"]), timestamps=tuple(frames["timestamps"]))


def pack(
    array: npt.NDArray[np.float16],
    key: str,
    *,
    frame_indices: Sequence[int] = (),
    timestamps: Sequence[float] = (),
) -> bytes:
    """Features, float16 [num_tokens, width], as a blob to be cached under `key`: SHA-256, then safetensors.

    The numbers and seconds of the frames they are of travel with them.

    Raises:
        NonFiniteFeatures: a value is infinite or not a number.
    """
    assert array.dtype == np.float16, array.dtype
    if not np.isfinite(array).all():
        raise NonFiniteFeatures("The encoder gave values that are not finite.")
    frames = json.dumps({"indices": list(frame_indices), "timestamps": list(timestamps)})
    body: bytes = save({_TENSOR: np.ascontiguousarray(array)}, metadata={"key": key, "frames": frames})
    return hashlib.sha256(body).digest() + body


def verify(blob: bytes, *, key: str, shape: tuple[int, ...]) -> dict[str, Any]:
    """Pass if `blob` is whole and holds float16 features of `shape` that were packed under `key`.

    Returns the frames they are of: `indices` and `timestamps`.

    Raises:
        CorruptFeatures: it is not.
    """
    body = memoryview(blob)[CHECKSUM_BYTES:]
    if hashlib.sha256(body).digest() != blob[:CHECKSUM_BYTES]:
        raise CorruptFeatures("The checksum of the cached features is wrong.")
    header = _header(body)
    metadata = header.get("__metadata__")
    if not isinstance(metadata, dict) or metadata.get("key") != key:
        raise CorruptFeatures("The cached features belong to another key.")
    described = header.get(_TENSOR)
    if not isinstance(described, dict) or described.get("dtype") != "F16" or len(header) != 2:
        raise CorruptFeatures("The cached blob holds something else than features in float16.")
    if described.get("shape") != list(shape):
        raise CorruptFeatures("The cached features have another shape.")
    return _frames(metadata.get("frames"))


def unpack(blob: bytes, *, key: str, shape: tuple[int, ...]) -> npt.NDArray[np.float16]:
    """The features of a verified `blob`: float16 of `shape`, writable.

    Raises:
        CorruptFeatures: as `verify`.
    """
    verify(blob, key=key, shape=shape)
    try:
        features: npt.NDArray[np.float16] = load(blob[CHECKSUM_BYTES:])[_TENSOR]
    except (SafetensorError, KeyError) as error:
        raise CorruptFeatures("The cached blob is no safetensors file.") from error
    return features


def _frames(text: object) -> dict[str, Any]:
    try:
        frames = json.loads(text) if isinstance(text, str) else None
    except ValueError:
        frames = None
    said = frames if isinstance(frames, dict) else {}
    if said.keys() != {"indices", "timestamps"} or not all(isinstance(listed, list) for listed in said.values()):
        raise CorruptFeatures("The cached features do not say which frames they are of.")
    return said


def _header(body: memoryview) -> dict[str, Any]:
    """safetensors: eight bytes of length, little endian, then a JSON object; the tensors' bytes follow."""
    length = int.from_bytes(body[:8], "little")
    try:
        header = json.loads(bytes(body[8 : 8 + length]))
    except ValueError as error:
        raise CorruptFeatures("The cached blob is no safetensors file.") from error
    if not isinstance(header, dict):
        raise CorruptFeatures("The cached blob is no safetensors file.")
    return header


def _framed(value: object) -> bytes:
    """One value, its type and its length; injective over texts, numbers, None, tuples and records of them."""
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
            raise TypeError(f"{type(value).__name__} has no place in a fingerprint")
    return kind + len(body).to_bytes(8, "big") + body


def _framed_fields(record: Any) -> Iterator[bytes]:
    for field in fields(record):
        yield _framed((field.name, getattr(record, field.name)))

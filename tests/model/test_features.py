"""The fingerprint and the blob of cached features."""

import hashlib
import subprocess
import sys
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from safetensors.numpy import save

from model.features import CorruptFeatures, NonFiniteFeatures, PackedFeatures, fingerprint, pack, unpack, verify
from model.video.pixels import PixelSpec
from model.video.spec import FrameSpec

SHAPE = (3, 4)
MADE: dict[str, Any] = {
    "family": "videochat",
    "checkpoint_digest": "ab" * 32,
    "frame_spec": FrameSpec(),
    "pixel_spec": PixelSpec(),
    "preprocessing_version": 1,
    "dtype": "float32",
}


def features() -> npt.NDArray[np.float16]:
    return np.linspace(-2, 2, 12, dtype=np.float16).reshape(SHAPE)


def sealed(body: bytes) -> bytes:
    """A blob with a valid checksum and any content."""
    return hashlib.sha256(body).digest() + body


def test_unpacked_features_equal_the_packed_ones() -> None:
    read = unpack(pack(features(), "k"), key="k", shape=SHAPE)
    np.testing.assert_array_equal(read, features())
    assert read.dtype == np.float16
    read += 1  # torch warns of arrays that cannot be written to


def test_the_frames_of_features_are_packed_with_them() -> None:
    blob = pack(features(), "k", frame_indices=(18, 55), timestamps=(0.6, 1.8333333333333333))
    packed = PackedFeatures.checked(blob, key="k", shape=SHAPE)
    assert (packed.frame_indices, packed.timestamps) == ((18, 55), (0.6, 1.8333333333333333))
    np.testing.assert_array_equal(unpack(packed.blob, key="k", shape=SHAPE), features())
    with pytest.raises(CorruptFeatures):
        PackedFeatures.checked(blob, key="other", shape=SHAPE)


def test_any_flipped_bit_is_detected() -> None:
    blob = pack(features(), "features:k")
    for place in range(len(blob)):
        for bit in (0, 7):
            flipped = bytearray(blob)
            flipped[place] ^= 1 << bit
            with pytest.raises(CorruptFeatures):
                verify(bytes(flipped), key="features:k", shape=SHAPE)


def test_any_truncation_or_addition_is_detected() -> None:
    blob = pack(features(), "k")
    for length in range(len(blob)):
        with pytest.raises(CorruptFeatures):
            verify(blob[:length], key="k", shape=SHAPE)
    with pytest.raises(CorruptFeatures):
        verify(blob + b"\0", key="k", shape=SHAPE)


def test_a_value_of_another_key_is_refused() -> None:
    with pytest.raises(CorruptFeatures, match="another key"):
        unpack(pack(features(), "other"), key="k", shape=SHAPE)


def test_features_of_another_shape_are_refused() -> None:
    for shape in ((4, 3), (3, 4, 1), (12,)):
        with pytest.raises(CorruptFeatures, match="another shape"):
            unpack(pack(features(), "k"), key="k", shape=shape)


@pytest.mark.parametrize(
    "body",
    [
        save({"features": features().astype(np.float32)}, metadata={"key": "k"}),
        save({"weights": features()}, metadata={"key": "k"}),
        save({"features": features(), "more": features()}, metadata={"key": "k"}),
        save({"features": features()}),
        save({"features": features()}, metadata={"key": "k"}),
        save({"features": features()}, metadata={"key": "k", "frames": "[1, 2]"}),
        save({"features": features()}, metadata={"key": "k", "frames": '{"indices": 1, "timestamps": []}'}),
        b"",
        b"not safetensors at all",
        b"\x02\0\0\0\0\0\0\0[]",
    ],
)
def test_an_intact_blob_of_other_content_is_refused(body: bytes) -> None:
    with pytest.raises(CorruptFeatures):
        unpack(sealed(body), key="k", shape=SHAPE)


def test_a_header_without_its_tensor_is_refused() -> None:
    body = pack(features(), "k")[32:]
    for cut in (1, 24):
        with pytest.raises(CorruptFeatures):
            unpack(sealed(body[:-cut]), key="k", shape=SHAPE)


def test_values_that_are_not_finite_are_never_packed() -> None:
    for value in (np.inf, -np.inf, np.nan):
        broken = features()
        broken[1, 2] = value
        with pytest.raises(NonFiniteFeatures):
            pack(broken, "k")


@pytest.mark.parametrize(
    "changed",
    [
        {"family": "videochat2"},
        {"checkpoint_digest": "cd" * 32},
        {"frame_spec": replace(FrameSpec(), count=16)},
        {"frame_spec": replace(FrameSpec(), start=1.0)},
        {"frame_spec": replace(FrameSpec(), end=1.0)},
        {"pixel_spec": replace(PixelSpec(), size=64)},
        {"pixel_spec": replace(PixelSpec(), fit="squash")},
        {"pixel_spec": replace(PixelSpec(), mean=(0.5, 0.5, 0.5))},
        {"preprocessing_version": 2},
        {"dtype": "bfloat16"},
    ],
)
def test_a_fingerprint_depends_on_everything_that_features_depend_on(changed: dict[str, Any]) -> None:
    assert fingerprint(**MADE | changed) != fingerprint(**MADE)


def test_a_fingerprint_has_256_bits_and_separates_fields() -> None:
    assert len(bytes.fromhex(fingerprint(**MADE))) == 32
    one = fingerprint(**MADE | {"family": "video", "checkpoint_digest": "chat"})
    other = fingerprint(**MADE | {"family": "videoc", "checkpoint_digest": "hat"})
    assert one != other


def test_equal_numbers_have_one_fingerprint() -> None:
    whole, broken = FrameSpec(start=1), FrameSpec(start=1.0)
    assert fingerprint(**MADE | {"frame_spec": whole}) == fingerprint(**MADE | {"frame_spec": broken})


def test_verifying_features_imports_no_torch() -> None:
    code = "import sys, model.features; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0

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

from model.features import (
    CorruptFeatures,
    NonFiniteFeatures,
    PackedFeatures,
    PartSpec,
    fingerprint,
    pack,
    unpack,
    verify,
)
from model.video.inputs import InputSpec
from model.video.pixels import PixelSpec
from model.video.spec import FrameSpec

SHAPE = (3, 4)
PARTS = (PartSpec(name="video", shape=SHAPE),)
INPUTS = InputSpec(frames=FrameSpec(), pixels=PixelSpec())
MADE: dict[str, Any] = {
    "family": "videochat",
    "encoder_digest": "ab" * 32,
    "inputs": INPUTS,
    "preprocessing_version": 1,
    "dtype": "float32",
}


def features() -> dict[str, npt.NDArray[np.float16]]:
    return {"video": np.linspace(-2, 2, 12, dtype=np.float16).reshape(SHAPE)}


def sealed(body: bytes) -> bytes:
    """A blob with a valid checksum and any content."""
    return hashlib.sha256(body).digest() + body


def test_unpacked_features_equal_the_packed_ones() -> None:
    read = unpack(pack(features(), "k"), key="k", parts=PARTS)["video"]
    np.testing.assert_array_equal(read, features()["video"])
    assert read.dtype == np.float16
    read += 1  # torch warns of arrays that cannot be written to


def test_the_frames_of_features_are_packed_with_them() -> None:
    blob = pack(features(), "k", frame_indices=(18, 55), timestamps=(0.6, 1.8333333333333333))
    packed = PackedFeatures.checked(blob, key="k", parts=PARTS)
    assert (packed.frame_indices, packed.timestamps) == ((18, 55), (0.6, 1.8333333333333333))
    np.testing.assert_array_equal(unpack(packed.blob, key="k", parts=PARTS)["video"], features()["video"])
    with pytest.raises(CorruptFeatures):
        PackedFeatures.checked(blob, key="other", parts=PARTS)


def test_features_of_several_parts_are_read_by_name() -> None:
    parts = (*PARTS, PartSpec(name="audio", shape=(1, 2)))
    both = features() | {"audio": np.ones((1, 2), np.float16)}
    read = unpack(pack(both, "k"), key="k", parts=parts)
    assert {name: part.shape for name, part in read.items()} == {"video": SHAPE, "audio": (1, 2)}
    for fewer in (PARTS, parts[1:]):
        with pytest.raises(CorruptFeatures, match="other parts"):
            unpack(pack(both, "k"), key="k", parts=fewer)


def test_an_optional_part_may_be_absent() -> None:
    parts = (*PARTS, PartSpec(name="audio", shape=(1, 2), optional=True))
    silent = PackedFeatures.checked(pack(features(), "k"), key="k", parts=parts)
    assert silent.parts == {"video"}
    assert unpack(silent.blob, key="k", parts=parts).keys() == {"video"}
    sounding = pack(features() | {"audio": np.ones((1, 2), np.float16)}, "k")
    assert PackedFeatures.checked(sounding, key="k", parts=parts).parts == {"video", "audio"}
    for blob, reason in (
        (pack({"audio": np.ones((1, 2), np.float16)}, "k"), "other parts"),
        (pack(features() | {"smell": np.ones((1, 2), np.float16)}, "k"), "other parts"),
        (pack(features() | {"audio": np.ones((2, 1), np.float16)}, "k"), "another shape"),
    ):
        with pytest.raises(CorruptFeatures, match=reason):
            verify(blob, key="k", parts=parts)


def test_any_flipped_bit_is_detected() -> None:
    blob = pack(features(), "features:k")
    for place in range(len(blob)):
        for bit in (0, 7):
            flipped = bytearray(blob)
            flipped[place] ^= 1 << bit
            with pytest.raises(CorruptFeatures):
                verify(bytes(flipped), key="features:k", parts=PARTS)


def test_any_truncation_or_addition_is_detected() -> None:
    blob = pack(features(), "k")
    for length in range(len(blob)):
        with pytest.raises(CorruptFeatures):
            verify(blob[:length], key="k", parts=PARTS)
    with pytest.raises(CorruptFeatures):
        verify(blob + b"\0", key="k", parts=PARTS)


def test_a_value_of_another_key_is_refused() -> None:
    with pytest.raises(CorruptFeatures, match="another key"):
        unpack(pack(features(), "other"), key="k", parts=PARTS)


def test_features_of_another_shape_are_refused() -> None:
    for shape in ((4, 3), (1, 12)):
        with pytest.raises(CorruptFeatures, match="another shape"):
            unpack(pack(features(), "k"), key="k", parts=(PartSpec(name="video", shape=shape),))


@pytest.mark.parametrize(
    "body",
    [
        save({"video": features()["video"].astype(np.float32)}, metadata={"key": "k"}),
        save({"weights": features()["video"]}, metadata={"key": "k"}),
        save(features() | {"more": features()["video"]}, metadata={"key": "k"}),
        save({}, metadata={"key": "k"}),
        save(features()),
        save(features(), metadata={"key": "k"}),
        save(features(), metadata={"key": "k", "frames": "[1, 2]"}),
        save(features(), metadata={"key": "k", "frames": '{"indices": 1, "timestamps": []}'}),
        b"",
        b"not safetensors at all",
        b"\x02\0\0\0\0\0\0\0[]",
    ],
)
def test_an_intact_blob_of_other_content_is_refused(body: bytes) -> None:
    with pytest.raises(CorruptFeatures):
        unpack(sealed(body), key="k", parts=PARTS)


def test_a_header_without_its_tensor_is_refused() -> None:
    body = pack(features(), "k")[32:]
    for cut in (1, 24):
        with pytest.raises(CorruptFeatures):
            unpack(sealed(body[:-cut]), key="k", parts=PARTS)


def test_values_that_are_not_finite_are_never_packed() -> None:
    for value in (np.inf, -np.inf, np.nan):
        broken = features()
        broken["video"][1, 2] = value
        with pytest.raises(NonFiniteFeatures):
            pack(broken, "k")


@pytest.mark.parametrize(
    "changed",
    [
        {"family": "videochat2"},
        {"encoder_digest": "cd" * 32},
        {"inputs": replace(INPUTS, frames=FrameSpec(count=16))},
        {"inputs": replace(INPUTS, frames=FrameSpec(start=1.0))},
        {"inputs": replace(INPUTS, frames=FrameSpec(end=1.0))},
        {"inputs": replace(INPUTS, pixels=PixelSpec(size=64))},
        {"inputs": replace(INPUTS, pixels=PixelSpec(fit="squash"))},
        {"inputs": replace(INPUTS, pixels=PixelSpec(mean=(0.5, 0.5, 0.5)))},
        {"preprocessing_version": 2},
        {"dtype": "bfloat16"},
    ],
)
def test_a_fingerprint_depends_on_everything_that_features_depend_on(changed: dict[str, Any]) -> None:
    assert fingerprint(**MADE | changed) != fingerprint(**MADE)


def test_a_fingerprint_has_256_bits_and_separates_fields() -> None:
    assert len(bytes.fromhex(fingerprint(**MADE))) == 32
    one = fingerprint(**MADE | {"family": "video", "encoder_digest": "chat"})
    other = fingerprint(**MADE | {"family": "videoc", "encoder_digest": "hat"})
    assert one != other


def test_equal_numbers_have_one_fingerprint() -> None:
    whole, broken = (replace(INPUTS, frames=FrameSpec(start=start)) for start in (1, 1.0))
    assert fingerprint(**MADE | {"inputs": whole}) == fingerprint(**MADE | {"inputs": broken})


def test_verifying_features_imports_no_torch() -> None:
    code = "import sys, model.features; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0

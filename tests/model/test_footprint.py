"""The memory of a checkpoint is estimated from its headers: exactly its weights, in the dtype that is loaded."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from model.footprint import Footprint, UnreadableCheckpoint, checkpoint_footprint
from model.weight_bits import Quantization

TENSORS = {
    "llama_model.model.layers.0.mlp.up_proj.weight": np.zeros((64, 16), np.float16),
    "llama_model.model.embed_tokens.weight": np.zeros((10, 16), np.float16),
    "visual_encoder.proj.weight": np.zeros((4, 4), np.float16),
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for place, (name, tensor) in enumerate(TENSORS.items()):
        save_file({name: tensor}, tmp_path / f"model-{place}.safetensors", metadata={"format": "pt"})
    save_file({"clip": np.zeros((1000, 1000), np.float16)}, tmp_path / "inputs.safetensors")
    sizes = {"decoder": {"depth": 2, "width": 16, "max_positions": 100}}
    (tmp_path / "config.json").write_text(json.dumps(sizes))
    return tmp_path


def footprint(folder: Path, *, value_bytes: int = 4, quantization: Quantization | None = None) -> Footprint:
    return checkpoint_footprint(folder, value_bytes=value_bytes, kv_value_bytes=2, quantization=quantization)


def test_weights_count_in_the_dtype_that_is_loaded(folder: Path) -> None:
    num_values = 64 * 16 + 10 * 16 + 4 * 4
    assert footprint(folder) == Footprint(weight_bytes=4 * num_values, kv_bytes=2 * 2 * 2 * 16 * 100)
    assert footprint(folder, value_bytes=2).weight_bytes == 2 * num_values


def test_only_the_layers_of_the_language_model_are_quantized(folder: Path) -> None:
    rest = 4 * (10 * 16 + 4 * 4)
    assert footprint(folder, quantization="int8").weight_bytes == 64 * 16 + rest
    assert footprint(folder, quantization="int4").weight_bytes == 64 * 16 // 2 + 64 * 16 // 16 + rest


def test_a_folder_that_does_not_tell_its_sizes_counts_its_weights_alone(folder: Path) -> None:
    (folder / "config.json").unlink()
    assert footprint(folder).kv_bytes == 0


def header(text: str) -> bytes:
    return len(text).to_bytes(8, "little") + text.encode()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff" * 64,
        header("[]"),
        header('{"a": 1}'),
        header('{"a": {"shape": 3}}'),
        *(
            header(f'{{"a": {{"shape": [{size}]}}}}')
            for size in ("1e400", "-1", "2.5", "NaN", "true", '"3"', "1" + "0" * 400)
        ),
        header(f'{{"a": {{"shape": [{", ".join(["1000000"] * 60)}]}}}}'),
        header('{"a": {"shape": [' + "[" * 100_000),
    ],
    ids=lambda content: content[8:40].decode(errors="replace"),
)
def test_a_damaged_file_is_refused_by_name(folder: Path, content: bytes) -> None:
    (folder / "model-0.safetensors").write_bytes(content)
    with pytest.raises(UnreadableCheckpoint, match=r"model-0\.safetensors is not a safetensors file, or is damaged"):
        footprint(folder)


@pytest.mark.parametrize("name", ["model-0.safetensors", "config.json"])
@pytest.mark.timeout(10)
def test_what_is_not_a_regular_file_is_not_read(folder: Path, name: str) -> None:
    (folder / name).unlink()
    os.mkfifo(folder / name)
    if name == "config.json":
        assert footprint(folder).kv_bytes == 0
    else:
        with pytest.raises(UnreadableCheckpoint, match=r"model-0\.safetensors is not a safetensors file"):
            footprint(folder)


@pytest.mark.parametrize("sizes", ['{"depth": 1e400, "width": 1, "max_positions": 1}', '{"depth": -1}', "[]", "3"])
def test_sizes_of_a_decoder_that_are_none_count_nothing(folder: Path, sizes: str) -> None:
    (folder / "config.json").write_text(f'{{"decoder": {sizes}}}')
    assert footprint(folder).kv_bytes == 0


def test_a_folder_without_weights_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnreadableCheckpoint, match=r"holds no \*\.safetensors"):
        footprint(tmp_path)
    with pytest.raises(UnreadableCheckpoint, match=r"nowhere cannot be read \(No such file or directory\)\.$"):
        footprint(tmp_path / "nowhere")
    (tmp_path / "file").touch()
    with pytest.raises(UnreadableCheckpoint, match=r"file is not a folder\.$"):
        footprint(tmp_path / "file")
    for name in ("\ud800", "a\0b"):
        with pytest.raises(UnreadableCheckpoint, match=r"is not the name of a folder\.$"):
            footprint(Path(name))

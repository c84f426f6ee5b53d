"""VideoChat's four published files, in small sizes, are merged like in the original; wrong ones are refused."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from torch import Tensor

from model.checkpoints.folder import RECORD, write_folder
from model.families import load_family
from model.families.videochat.family import read_source
from model.families.videochat.network import VideoChatConfig
from model.families.videochat.published import (
    PUBLISHED_7B,
    PUBLISHED_13B,
    find_published,
    merge,
    read_sizes,
)
from model.weights import WeightsError
from tests.parity.goldens import assert_near, tensors
from tests.parity.spoiling import Change, add, changed, drop, narrow, shrink
from tests.published import golden

SETS = ("videochat-open", "videochat-e2e")


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """The four files and their sizes in one folder, which a test may damage."""
    folder = tmp_path / "published"
    shutil.copytree(golden("videochat-open-ckpt"), folder)
    shutil.copytree(golden("videochat-open") / "llama", folder / "llama")
    shutil.copy(golden("videochat-open") / "config.json", folder)
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)
    return folder


def merged(folder: Path, **parts: Path) -> dict[str, Tensor]:
    return merge(find_published(folder, parts))[1]


@pytest.mark.parametrize("name", SETS)
def test_the_four_files_merge_into_the_state_dict_of_the_original_exactly(name: str) -> None:
    folder = golden(name)
    config, ours = merge(find_published(golden(f"{name}-ckpt"), {"llama": folder / "llama"}))
    assert config == read_sizes(folder / "config.json")
    original = tensors(folder / "weights.safetensors")
    assert ours.keys() == original.keys()
    for key, tensor in original.items():
        assert torch.equal(ours[key].to(tensor.dtype), tensor), key


@pytest.mark.parametrize("name", SETS)
def test_a_converted_folder_gives_the_features_of_the_files_it_was_made_from(name: str, tmp_path: Path) -> None:
    folder = golden(name)
    checkpoint, origin = read_source(
        golden(f"{name}-ckpt"), parts={"llama": folder / "llama"}, ignored=(), dtype=torch.float32
    )
    digest = write_folder(tmp_path / "mine", checkpoint, origin=origin, report=lambda *_: None)
    converted = load_family("videochat", checkpoint=tmp_path / "mine")
    assert converted.checkpoint_digest == digest
    (tmp_path / "mine" / RECORD).rename(tmp_path / "record.json")
    assert load_family("videochat", checkpoint=tmp_path / "mine").encoder_digest == converted.encoder_digest

    whole = load_family("videochat", checkpoint=folder)
    assert whole.inputs is not None
    size = whole.inputs.pixels.size
    pixel_values = torch.randn(1, 2, 3, size, size, generator=torch.Generator().manual_seed(1))
    # Not to the last bit: the alignment of a matrix in its file decides the order of additions.
    assert_near(converted.encode(pixel_values)["video"], whole.encode(pixel_values)["video"], "features")
    assert converted.tokenizer.encode("What is it?", bos=True) == whole.tokenizer.encode("What is it?", bos=True)
    for ours, theirs in zip(converted.language_model.parameters(), whole.language_model.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_a_whole_model_in_one_file_converts_as_its_four_files_do(files: Path) -> None:
    of_four, _ = read_source(files, parts={}, ignored=(), dtype=None)
    of_one, _ = read_source(golden("videochat-open"), parts={}, ignored=(), dtype=None)
    assert of_four.tensors.keys() == of_one.tensors.keys()
    assert of_four.sizes == of_one.sizes
    assert not any("inv_freq" in key or "position_ids" in key or "t5_proj" in key for key in of_four.tensors)


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("videochat.pth", drop("visual_encoder.gmhra"), "holds no GMHRA .* not the file that VideoChat published"),
        ("videochat.pth", drop("visual_encoder.gmhra.1.dpe"), r"no key covers: visual_encoder\.gmhra\.1\.dpe\.bias"),
        ("videochat.pth", drop("extra_query_tokens"), "no key covers: extra_query_tokens"),
        ("videochat.pth", add("lora_A.weight"), r"videochat\.pth has a key that is not part of .*: lora_A\.weight"),
        ("videochat.pth", narrow("llama_proj.weight", 40), "projects to 40 values, but the language model is 64 wide"),
        ("eva_vit_g.pth", drop("blocks.2."), r"no key covers: visual_encoder\.blocks\.2\."),
        ("eva_vit_g.pth", add("rel_pos_bias"), r"eva_vit_g\.pth has a key .*: rel_pos_bias.*--ignore"),
        ("eva_vit_g.pth", narrow("pos_embed", 0), "shapes that differ: visual_encoder.pos_embed"),
        ("blip2_pretrained_flant5xxl.pth", drop("query_tokens"), "no key covers: query_tokens"),
        ("blip2_pretrained_flant5xxl.pth", add("opt_proj.bias"), "has a key .*: opt_proj.bias"),
        ("llama/model.safetensors", add("score.weight"), r"llama has a key .*: score\.weight.*--ignore"),
        ("llama/model.safetensors", shrink("model.norm.weight"), "holds a bare delta: apply it to LLaMA"),
    ],
)
def test_a_wrong_file_is_refused_by_name(files: Path, file: str, change: Change, message: str) -> None:
    changed(files / file, change)
    with pytest.raises(WeightsError, match=message):
        read_source(files, parts={}, ignored=(), dtype=None)


def test_an_ignored_key_is_accepted(files: Path) -> None:
    changed(files / "eva_vit_g.pth", add("rel_pos_bias"))
    changed(files / "llama" / "model.safetensors", add("score.weight"))
    checkpoint, _ = read_source(files, parts={}, ignored=("rel_pos_bias", "score.weight"), dtype=None)
    assert not any("rel_pos" in key or "score" in key for key in checkpoint.tensors)


def rewritten(folder: Path, **values: object) -> None:
    path = folder / "llama" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_bytes()) | values))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"vocab_size": 384}, "vocab_size is 384, not 385.*vicuna-7b-delta-v0 .* a bare delta, LLaMA-2"),
        ({"hidden_size": 80, "num_attention_heads": 5}, "width is 80, not 64"),
        ({"num_hidden_layers": 3}, "depth is 3, not 2"),
        ({"max_position_embeddings": 4096}, "max_positions is 4096, not 2048"),
    ],
)
def test_another_llama_is_refused_and_the_right_one_named(files: Path, values: dict[str, int], message: str) -> None:
    rewritten(files, **values)
    with pytest.raises(WeightsError, match=message):
        merged(files)


def test_a_llama_without_the_row_that_vicuna_added_is_refused(files: Path) -> None:
    for key in ("model.embed_tokens.weight", "lm_head.weight"):
        changed(files / "llama" / "model.safetensors", narrow(key, 384))
    with pytest.raises(WeightsError, match=r"has 384 embedding rows instead of 385.*\[PAD\] row"):
        merged(files)


@pytest.mark.parametrize("file", ["eva_vit_g.pth", "blip2_pretrained_flant5xxl.pth", "videochat.pth"])
def test_an_absent_or_truncated_file_is_named_with_what_to_do(files: Path, file: str) -> None:
    whole = (files / file).read_bytes()
    (files / file).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(WeightsError, match=rf"{file} is damaged or truncated .* Download it again"):
        merged(files)
    (files / file).unlink()
    with pytest.raises(WeightsError, match=rf"has no {file}; download it, or name it with --part"):
        merged(files)


def test_parts_can_be_in_other_folders(files: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "my_vit.pth"
    (files / "eva_vit_g.pth").rename(elsewhere)
    assert merged(files, vision=elsewhere).keys() == tensors(golden("videochat-open") / "weights.safetensors").keys()
    with pytest.raises(WeightsError, match=r"no part 'vit'; its parts are vision, qformer, llama, videochat, config"):
        merged(files, vit=elsewhere)


def test_two_candidates_for_a_part_are_both_named(files: Path) -> None:
    shutil.copy(files / "videochat.pth", files / "videochat_7b.pth")
    with pytest.raises(WeightsError, match=r"has videochat_7b\.pth and videochat\.pth; say which"):
        merged(files)


@pytest.mark.parametrize("config", [PUBLISHED_7B, PUBLISHED_13B])
def test_without_a_config_the_size_follows_from_the_projection(files: Path, config: VideoChatConfig) -> None:
    rows = config.decoder.width
    (files / "config.json").unlink()
    changed(files / "videochat.pth", lambda state: state.update({"llama_proj.weight": torch.zeros(rows, 768)}))
    with pytest.raises(WeightsError, match=r"holds another LLaMA .* vocab_size is 385, not 32001"):
        merged(files)
    changed(files / "videochat.pth", lambda state: state.update({"llama_proj.weight": torch.zeros(64, 32)}))
    with pytest.raises(WeightsError, match=r"neither the 7B nor the 13B .* \[64, 32\].*--part config=FILE"):
        merged(files)

"""Video-ChatGPT's three published parts, in small sizes, are merged like in the original; wrong ones are refused."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from torch import Tensor

from model.checkpoints.folder import RECORD, write_folder
from model.families import load_family
from model.families.video_chatgpt.family import read_source
from model.families.video_chatgpt.published import PUBLISHED, VIDEO_TOKENS, merge, read_sizes
from model.text.tokenizer import TokenizerError
from model.weights import WeightsError
from tests.model.text.sentencepiece_files import llama_like, model_file
from tests.parity.goldens import assert_near, tensors
from tests.parity.spoiling import Change, add, changed, drop, shrink
from tests.published import golden, publish_video_chatgpt

LLAVA_TOKENS = ("<im_patch>", "<im_start>", "<im_end>")
VIDEO_FILE, LLAMA_FILE, VISION_FILE = "video_chatgpt-7B.bin", "llava/pytorch_model.bin", "clip/model.safetensors"


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """The three parts in one folder, which a test may damage."""
    return publish_video_chatgpt(tmp_path / "published")


@pytest.fixture
def reference() -> dict[str, Tensor]:
    """The reference's weights as published: without head rows for Video-ChatGPT's own tokens."""
    weights = tensors(golden("video-chatgpt-open") / "weights.safetensors")
    weights["lm_head.weight"][259:] = 0
    return weights


def refusal(folder: Path, **parts: Path) -> str:
    with pytest.raises((WeightsError, TokenizerError)) as refused:
        read_source(folder, parts=parts, ignored=(), dtype=None)
    return str(refused.value)


def test_the_published_parts_merge_into_the_state_dict_of_the_original_exactly(
    files: Path, reference: dict[str, Tensor]
) -> None:
    config, merged = merge(PUBLISHED.find(files, {}))
    assert config == read_sizes(golden("video-chatgpt-open") / "config.json")
    of_no_use = {"vision_model.embeddings.position_ids", "model.layers.0.self_attn.rotary_emb.inv_freq"}
    assert merged.keys() - of_no_use == reference.keys()
    assert [key for key, tensor in reference.items() if not torch.equal(merged[key], tensor)] == []


def test_a_converted_folder_gives_the_model_of_the_files_it_was_made_from(
    files: Path, reference: dict[str, Tensor], tmp_path: Path
) -> None:
    checkpoint, origin = read_source(files, parts={}, ignored=(), dtype=torch.float32)
    assert not any("inv_freq" in key or "post_layernorm" in key or "layers.3." in key for key in checkpoint.tensors)
    digest = write_folder(tmp_path / "mine", checkpoint, origin=origin, report=lambda *_: None)
    assert all(torch.equal(tensor, reference[key]) for key, tensor in checkpoint.tensors.items())

    converted = load_family("video-chatgpt", checkpoint=tmp_path / "mine")
    assert converted.checkpoint_digest == digest
    (tmp_path / "mine" / RECORD).rename(tmp_path / "record.json")
    assert load_family("video-chatgpt", checkpoint=tmp_path / "mine").encoder_digest == converted.encoder_digest
    assert [converted.tokenizer.special_id(name) for name in VIDEO_TOKENS] == [259, 260, 261]
    original = load_family("video-chatgpt", checkpoint=golden("video-chatgpt-open"))
    pixel_values = torch.randn(1, 3, 3, 42, 42, generator=torch.Generator().manual_seed(1))
    # Not to the last bit: the alignment of a matrix in its file decides the order of additions.
    assert_near(converted.encode(pixel_values)["video"], original.encode(pixel_values)["video"], "features")
    original.language_model.lm_head.weight[259:] = 0
    for ours, theirs in zip(converted.language_model.parameters(), original.language_model.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_tokens_that_llava_added_come_before_those_of_video_chatgpt(tmp_path: Path) -> None:
    files = publish_video_chatgpt(tmp_path / "published", llava_tokens=LLAVA_TOKENS)
    config, merged = merge(PUBLISHED.find(files, {}))
    assert config.added_tokens == (*LLAVA_TOKENS, *VIDEO_TOKENS)
    assert config.decoder.vocab_size == 265
    head = merged["lm_head.weight"]
    assert [bool(row.any()) for row in head[258:]] == [True] * 4 + [False] * 3
    (files / "llava" / "added_tokens.json").unlink()
    assert "259 pieces and 0 added tokens (added_tokens.json) for 262 rows" in refusal(files)


def rewritten(path: Path, **values: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_bytes()) | values))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"vocab_size": 260}, "for 260 rows of embeddings, which become 262 with Video-ChatGPT's"),
        ({"hidden_size": 64}, "projects 32 values to 48, but CLIP gives 32 and the language model is 64 wide"),
        ({"rope_theta": 1e6}, "a LLaMA of a later generation"),
        ({"num_hidden_layers": 3}, "parameters that no key covers: language_model.model.layers.2."),
    ],
)
def test_another_llama_is_refused(files: Path, values: dict[str, object], message: str) -> None:
    rewritten(files / "llava" / "config.json", **values)
    assert message in refusal(files)


def test_a_llama_without_llava_s_tokens_is_refused_and_the_right_one_named(tmp_path: Path) -> None:
    wanted = publish_video_chatgpt(tmp_path / "wanted", llava_tokens=LLAVA_TOKENS)
    bare = publish_video_chatgpt(tmp_path / "bare")
    message = refusal(wanted, llama=bare / "llava")
    assert "which become 262 with Video-ChatGPT's; video_chatgpt-7B.bin has 265" in message
    assert "Video-ChatGPT needs LLaVA-Lightning-7B-v1-1" in message


def test_another_tokenizer_is_refused(files: Path) -> None:
    (files / "llava" / "tokenizer.model").write_bytes(model_file(llama_like()))
    assert "354 pieces and 0 added tokens (added_tokens.json) for 259 rows" in refusal(files)


def test_another_clip_is_refused(files: Path) -> None:
    path = files / "clip" / "config.json"
    sizes = json.loads(path.read_bytes())["vision_config"]
    for values, message in (
        ({"hidden_size": 64}, "but CLIP gives 64"),
        ({"image_size": 56}, "shapes that differ: vision_model.embeddings.position_embedding.weight"),
        ({"hidden_act": "gelu"}, "its activation is gelu."),
    ):
        rewritten(path, vision_config=sizes | values)
        assert message in refusal(files)
    del sizes["patch_size"]
    rewritten(path, vision_config=sizes)
    assert "lacks 'patch_size'; it is not CLIP's" in refusal(files)


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        (VIDEO_FILE, drop("model.mm_projector.bias"), "lacks model.mm_projector.bias. It is not the file published as"),
        (VIDEO_FILE, drop("model.embed"), "lacks model.embed_tokens.weight"),
        (VIDEO_FILE, add("lora_A.weight"), "7B.bin has a key that is not part of Video-ChatGPT: lora_A.weight."),
        (LLAMA_FILE, drop("lm_head"), "parameters that no key covers: language_model.lm_head.weight"),
        (LLAMA_FILE, drop("model.layers.1.mlp.up"), "no key covers: language_model.model.layers.1.mlp.up_proj.weight"),
        (LLAMA_FILE, add("model.vision_tower.bias"), "llava has a key that is not part of"),
        (LLAMA_FILE, add("model.layers.7.bias"), "unknown keys: model.layers.7.bias"),
        (LLAMA_FILE, shrink("model.norm.weight"), "holds a bare delta: apply it to LLaMA"),
        (VISION_FILE, drop("vision_model.pre_layrnorm"), "no key covers: vision_tower.pre_layrnorm"),
        (VISION_FILE, add("visual.proj"), "clip has a key that is not part of Video-ChatGPT: visual.proj"),
    ],
)
def test_a_wrong_file_is_refused_by_name(files: Path, file: str, change: Change, message: str) -> None:
    changed(files / file, change)
    assert message in refusal(files)


def test_an_ignored_key_is_accepted(files: Path) -> None:
    for file, key in ((VIDEO_FILE, "lora"), (LLAMA_FILE, "rope"), (VISION_FILE, "bias")):
        changed(files / file, add(key))
    checkpoint, _ = read_source(files, parts={}, ignored=("lora", "rope", "bias"), dtype=None)
    assert checkpoint.tensors.keys() == read_source_keys(publish_video_chatgpt(files / "again"))


def read_source_keys(folder: Path) -> set[str]:
    return set(read_source(folder, parts={}, ignored=(), dtype=None)[0].tensors)


@pytest.mark.parametrize("file", [VIDEO_FILE, LLAMA_FILE, VISION_FILE])
def test_an_absent_or_truncated_file_is_named_with_what_to_do(files: Path, file: str) -> None:
    whole = (files / file).read_bytes()
    (files / file).write_bytes(whole[: len(whole) // 2])
    assert f"{Path(file).name} is damaged or truncated (it has {len(whole) // 2:,} bytes)." in refusal(files)
    (files / file).unlink()
    assert ("download it, or name it with --part" if file == VIDEO_FILE else "holds no weights") in refusal(files)


@pytest.mark.parametrize(("name", "part"), [("llava", "llama"), ("clip", "vision")])
def test_a_folder_that_is_absent_or_ambiguous_can_be_named(files: Path, tmp_path: Path, name: str, part: str) -> None:
    shutil.copytree(files / name, files / f"{name}-2")
    assert f"{name} and {name}-2, each a" in refusal(files)
    shutil.rmtree(files / f"{name}-2")
    elsewhere = (files / name).rename(tmp_path / "elsewhere")
    assert f"name one with --part {part}=FOLDER" in refusal(files)
    read_source(files, parts={part: elsewhere}, ignored=(), dtype=None)


def test_an_unknown_part_is_refused(files: Path) -> None:
    assert "Video-ChatGPT has no part 'clip'; its parts are vision, llama, video." in refusal(files, clip=files)


def test_a_clip_of_another_depth_than_its_weights_is_refused(files: Path) -> None:
    path = files / "clip" / "config.json"
    sizes = json.loads(path.read_bytes())["vision_config"]
    depth = sizes["num_hidden_layers"]
    rewritten(path, vision_config=sizes | {"num_hidden_layers": depth + 1})
    assert f"of {depth} layers, but its config.json names {depth + 1}" in refusal(files)

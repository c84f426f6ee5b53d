"""The published folders of both Video-LLaVAs, in small sizes, are converted exactly; wrong ones are refused by name."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from model.checkpoints.folder import read_folder, write_folder
from model.families import family_module, load_family
from model.text.tokenizer import TokenizerError
from model.weights import WeightsError
from tests.model.text.sentencepiece_files import llama_like, model_file
from tests.parity.goldens import assert_near, tensors
from tests.parity.spoiling import Change, add, changed, drop, narrow, shrink
from tests.published import golden

ORIGINAL, HF = "video-llava", "video-llava-hf"
SETS = {ORIGINAL: ("video-llava-e2e",), HF: ("video-llava-hf-e2e", "video-llava-hf-open")}
FOLDERS = {ORIGINAL: "Video-LLaVA-7B", HF: "Video-LLaVA-7B-hf"}
FIRST = {ORIGINAL: "pytorch_model-00001-of-00002.bin", HF: "model-00001-of-00003.safetensors"}
SECOND = {ORIGINAL: "pytorch_model-00002-of-00002.bin", HF: "model-00002-of-00003.safetensors"}
TOWER, IMAGE_TOWER = "LanguageBind_Video_merge", "LanguageBind_Image"


@pytest.fixture(params=[ORIGINAL, HF])
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def files(family: str, tmp_path: Path) -> Path:
    """A copy of the published folders of a family, which a test may damage."""
    return copied(family, tmp_path / "published")


def copied(family: str, folder: Path) -> Path:
    shutil.copytree(golden(f"{SETS[family][0]}-ckpt"), folder, copy_function=shutil.copyfile)
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o755)
    return folder


def refusal(family: str, folder: Path | None, **parts: Path) -> str:
    with pytest.raises((WeightsError, TokenizerError)) as refused:
        family_module(family).read_source(folder, parts=parts, ignored=(), dtype=None)
    return str(refused.value)


@pytest.mark.parametrize(("family", "name"), [(family, name) for family, names in SETS.items() for name in names])
def test_the_published_folders_convert_to_exactly_the_tensors_of_the_reference(family: str, name: str) -> None:
    reference = tensors(golden(name) / "weights.safetensors")
    module = family_module(family)
    for folder in (golden(f"{name}-ckpt"), golden(f"{name}-ckpt") / FOLDERS[family]):
        checkpoint, _ = module.read_source(folder, parts={}, ignored=(), dtype=torch.float32)
        wanted = {
            key for key in reference if module.key_map(module.read_sizes(golden(name) / "config.json")).target(key)
        }
        assert checkpoint.tensors.keys() == wanted
        assert [key for key in wanted if not torch.equal(checkpoint.tensors[key].float(), reference[key])] == []
        assert (checkpoint.beside.keys() == {"tokenizer.model"}) == name.endswith("e2e")


def test_a_converted_folder_is_the_model_of_the_reference(family: str, tmp_path: Path) -> None:
    reference = golden(SETS[family][0])
    source = golden(f"{SETS[family][0]}-ckpt")
    checkpoint, origin = family_module(family).read_source(source, parts={}, ignored=(), dtype=torch.float16)
    digest = write_folder(tmp_path / "mine", checkpoint, origin=origin, report=lambda *_: None)
    assert not any("image_tower" in key or "layers.2." in key for key in read_folder(tmp_path / "mine"))
    converted, original = (load_family(family, checkpoint=folder) for folder in (tmp_path / "mine", reference))
    assert converted.checkpoint_digest == digest
    assert converted.network.config == original.network.config
    pixel_values = torch.randn(1, 8, 3, 224, 224, generator=torch.Generator().manual_seed(1))
    # Not to the last bit: the alignment of a matrix in its file decides the order of additions.
    assert_near(converted.encode(pixel_values)["video"], original.encode(pixel_values)["video"], "features")
    for ours, theirs in zip(converted.language_model.parameters(), original.language_model.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def garbage(path: Path) -> None:
    path.write_bytes(b"garbage" * 64)


def half(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def overwritten(path: Path) -> None:
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 4000] = b"\xff" * 4000
    path.write_bytes(content)


@pytest.mark.parametrize("damage", [garbage, half, Path.unlink])
def test_a_damaged_cut_or_absent_file_is_refused_by_name(
    family: str, files: Path, damage: Callable[[Path], None]
) -> None:
    folder = files / FOLDERS[family]
    index = next(path.name for path in folder.iterdir() if path.name.endswith(".index.json"))
    whole = folder.with_name("whole")
    shutil.copytree(folder, whole)
    for name in ("config.json", index, "tokenizer.model", FIRST[family], SECOND[family]):
        damage(folder / name)
        said = refusal(family, None, llava=folder)
        assert name in said or (name == index and damage is Path.unlink and "holds no weights" in said), name
        shutil.copyfile(whole / name, folder / name)
    family_module(family).read_source(folder, parts={}, ignored=(), dtype=None)


def test_values_that_are_overwritten_are_refused(family: str, files: Path) -> None:
    overwritten(files / FOLDERS[family] / SECOND[family])
    said = refusal(family, files)
    assert "is damaged" in said and (SECOND[family] in said or FOLDERS[family] in said)


def test_shards_that_are_swapped_are_refused_by_name(family: str, files: Path) -> None:
    first, second = files / FOLDERS[family] / FIRST[family], files / FOLDERS[family] / SECOND[family]
    first.rename(first.with_name("other"))
    second.rename(first)
    first.with_name("other").rename(second)
    assert f"{FIRST[family]} in " in refusal(family, files)


def test_the_other_video_llava_is_refused_and_its_family_named(family: str, tmp_path: Path) -> None:
    other = {ORIGINAL: HF, HF: ORIGINAL}[family]
    files = copied(other, tmp_path / "other")
    for said in (refusal(family, files), refusal(family, None, llava=files / FOLDERS[other])):
        assert said.split("; name one")[0].rstrip(").").endswith(f"{FOLDERS[other]} is the family {other}")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (drop("lm_head"), "lacks lm_head.weight. Download it again."),
        (add("lora_A.weight"), "Video-LLaVA-7B has a key that is not part of Video-LLaVA: lora_A.weight."),
        (add("model.layers.7.bias"), "unknown keys: model.layers.7.bias"),
        (shrink("model.norm.weight"), "holds a bare delta"),
        (narrow("model.embed_tokens.weight", 400), "has 400 embedding rows instead of 420"),
        (drop("model.video_tower.video_tower.encoder.layers.1.temporal_attn.q_proj"), "Download it again."),
    ],
)
def test_a_wrong_shard_of_the_original_is_refused(change: Change, message: str, tmp_path: Path) -> None:
    files = copied(ORIGINAL, tmp_path / "published")
    for name in (FIRST[ORIGINAL], SECOND[ORIGINAL]):
        path = files / FOLDERS[ORIGINAL] / name
        state = torch.load(path, weights_only=True)
        try:
            change(state)
        except KeyError:
            continue  # the tensor is in the other shard
        torch.save(state, path)
    assert message in refusal(ORIGINAL, files)


def rewritten(path: Path, **values: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_bytes()) | values))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"mm_vision_select_layer": -1}, "mm_vision_select_layer is -1, not -2"),
        ({"mm_projector_type": "linear"}, "mm_projector_type is linear, not mlp2x_gelu"),
        ({"vocab_size": 421}, "has 420 pieces for 421 rows of embeddings"),
        ({"rope_theta": 1e6}, "a LLaMA of a later generation"),
        ({"num_hidden_layers": 3}, "no key covers: language_model.model.layers.2."),
    ],
)
def test_another_original_is_refused(values: dict[str, object], message: str, tmp_path: Path) -> None:
    files = copied(ORIGINAL, tmp_path / "published")
    rewritten(files / FOLDERS[ORIGINAL] / "config.json", **values)
    assert message in refusal(ORIGINAL, files)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"vision_feature_layer": -1}, "vision_feature_layer is -1, not -2"),
        ({"image_token_index": 400}, "has <image> at 420, but config.json at 400"),
        ({"text_config": {}}, "parameters that no key covers"),
        ({"vision_config": []}, "is not that of Video-LLaVA -hf"),
    ],
)
def test_another_hf_model_is_refused(values: dict[str, object], message: str, tmp_path: Path) -> None:
    files = copied(HF, tmp_path / "published")
    rewritten(files / FOLDERS[HF] / "config.json", **values)
    assert message in refusal(HF, files)


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("preprocessor_config.json", {"image_mean": [0.5, 0.5, 0.5]}),
        ("preprocessor_config.json", {"size": {"shortest_edge": 336}}),
        ("preprocessor_config.json", {"do_center_crop": False}),
        ("preprocessor_config.json", {"rescale_factor": 1.0}),
        ("added_tokens.json", {"<video>": 420, "<image>": 421}),
    ],
)
def test_another_processor_of_hf_is_refused_by_name(name: str, values: dict[str, object], tmp_path: Path) -> None:
    files = copied(HF, tmp_path / "published")
    rewritten(files / FOLDERS[HF] / name, **values)
    assert name in refusal(HF, files)


def test_another_tokenizer_is_refused(family: str, files: Path) -> None:
    (files / FOLDERS[family] / "tokenizer.model").write_bytes(model_file(llama_like()))
    assert "has 354 pieces" in refusal(family, files)


def test_the_tower_s_folder_is_needed_for_other_sizes_and_the_image_tower_s_is_refused(tmp_path: Path) -> None:
    files = copied(ORIGINAL, tmp_path / "published")
    elsewhere = (files / TOWER).rename(tmp_path / "tower")
    assert "has another video tower than Video-LLaVA-7B's. Name the folder of LanguageBind_Video_merge" in refusal(
        ORIGINAL, files
    )
    folder = files / FOLDERS[ORIGINAL]
    family_module(ORIGINAL).read_source(None, parts={"llava": folder, "video_tower": elsewhere}, ignored=(), dtype=None)
    said = refusal(ORIGINAL, None, llava=folder, video_tower=files / IMAGE_TOWER)
    assert f"{IMAGE_TOWER} is another tower, without attention over time" in said


def test_weights_of_the_tower_that_are_damaged_or_of_another_tower_are_refused(tmp_path: Path) -> None:
    files = copied(ORIGINAL, tmp_path / "published")
    path = files / TOWER / "pytorch_model.bin"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1000])
    assert "pytorch_model.bin is damaged or truncated" in refusal(ORIGINAL, files)
    path.write_bytes(whole)
    changed(path, shrink("vision_model.encoder.layers.0.temporal_embedding"))
    assert f"in {files / TOWER} is not the one in Video-LLaVA-7B" in refusal(ORIGINAL, files)
    path.unlink()
    family_module(ORIGINAL).read_source(files, parts={}, ignored=(), dtype=None)


@pytest.mark.parametrize("values", [{"hidden_act": "quick_gelu"}, {"num_attention_heads": 2}])
def test_activation_and_heads_are_read_from_the_tower(values: dict[str, object], tmp_path: Path) -> None:
    files = copied(ORIGINAL, tmp_path / "published")
    path = files / TOWER / "config.json"
    config = json.loads(path.read_bytes())
    rewritten(path, vision_config=config["vision_config"] | values)
    checkpoint, _ = family_module(ORIGINAL).read_source(files, parts={}, ignored=(), dtype=None)
    found = {
        "hidden_act": checkpoint.sizes["activation"],
        "num_attention_heads": checkpoint.sizes["vision"]["num_heads"],
    }
    assert values.items() <= found.items()


def test_a_folder_of_hf_without_its_tokenizer_is_refused_unless_it_has_no_file_of_one(tmp_path: Path) -> None:
    folder = copied(HF, tmp_path / "published") / FOLDERS[HF]
    (folder / "tokenizer.model").unlink()
    assert "tokenizer.model cannot be read" in refusal(HF, folder)


def test_an_unknown_part_is_refused(family: str, files: Path) -> None:
    assert "has no part 'llama'; its parts are llava" in refusal(family, files, llama=files)


@pytest.mark.parametrize("depth", [2, 4])
def test_a_tower_of_another_depth_than_its_weights_is_refused(family: str, files: Path, depth: int) -> None:
    path = files / {ORIGINAL: TOWER, HF: FOLDERS[HF]}[family] / "config.json"
    rewritten(path, vision_config=json.loads(path.read_bytes())["vision_config"] | {"num_hidden_layers": depth})
    assert f"a vision tower of 3 layers, but its config.json names {depth}" in refusal(family, files)


@pytest.mark.parametrize("values", [{"hidden_act": "relu"}, {"hidden_act": 5}, {"num_frames": 4}])
def test_the_tower_of_another_model_is_refused(values: dict[str, object], tmp_path: Path) -> None:
    files = copied(ORIGINAL, tmp_path / "published")
    path = files / TOWER / "config.json"
    rewritten(path, vision_config=json.loads(path.read_bytes())["vision_config"] | values)
    assert f"{next(iter(values))} is" in refusal(ORIGINAL, files)

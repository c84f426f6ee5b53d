"""VTimeLLM's published files, in small sizes, are merged exactly; damaged, cut and swapped ones are refused."""

import json
import shutil
import zipfile
from pathlib import Path

import pytest
import torch
from torch import Tensor

from model.checkpoints.folder import read_folder, write_folder
from model.checkpoints.openai_clip import read_openai_clip
from model.families import load_family
from model.families.vtimellm.family import read_source
from model.families.vtimellm.published import MODEL, merge
from model.families.vtimellm.sizes import PUBLISHED_7B, read_sizes
from model.text.tokenizer import TokenizerError
from model.weights import WeightsError
from tests.model.text.sentencepiece_files import llama_like, model_file
from tests.parity.goldens import tensors
from tests.parity.spoiling import Change, add, changed, drop, narrow, shrink
from tests.published import golden

ARCHIVE, CLIP, LLAMA = "clip/ViT-L-14.pt", "clip-vit-large-patch14", "vicuna-7b-v1.5"
STAGE1, STAGE2, STAGE3 = (f"vtimellm-vicuna-v1-5-7b-stage{number}" for number in (1, 2, 3))
PROJECTOR, ADAPTER, NON_LORA = f"{STAGE1}/mm_projector.bin", "adapter_model.bin", "non_lora_trainables.bin"
SHARDS = tuple(f"{LLAMA}/pytorch_model-0000{number}-of-00002.bin" for number in (1, 2))
BINARIES = (
    *(ARCHIVE, f"{CLIP}/pytorch_model.bin", *SHARDS, PROJECTOR),
    *(f"{stage}/{name}" for stage in (STAGE2, STAGE3) for name in (ADAPTER, NON_LORA)),
)
TEXTS = (
    *(f"{CLIP}/config.json", f"{LLAMA}/config.json", f"{LLAMA}/pytorch_model.bin.index.json"),
    *(f"{stage}/{name}" for stage in (STAGE2, STAGE3) for name in ("adapter_config.json", "config.json")),
)


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """The published files in one folder, which a test may damage."""
    folder = tmp_path / "published"
    shutil.copytree(golden("vtimellm-e2e-ckpt"), folder, copy_function=shutil.copyfile)
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)
    return folder


@pytest.fixture(scope="module")
def reference() -> dict[str, Tensor]:
    """The reference's weights with both adapters added, under the names of the merged model."""
    weights = tensors(golden("vtimellm-e2e") / "weights.safetensors")
    merged = {key.removeprefix("stage1."): tensor for key, tensor in weights.items() if "lora" not in key}
    for stage in ("stage2.", "stage3."):
        for key, down in weights.items():
            if key.startswith(stage) and "lora_A" in key:
                name = key.removeprefix(f"{stage}base_model.model.").replace(".lora_A", "")
                merged[name] = merged[name] + weights[key.replace("lora_A", "lora_B")] @ down * 2.0
    return merged


def refusal(folder: Path, **parts: Path) -> str:
    with pytest.raises((WeightsError, TokenizerError)) as refused:
        read_source(folder, parts=parts, ignored=(), dtype=None)
    return str(refused.value)


def differing(got: dict[str, Tensor], expected: dict[str, Tensor]) -> list[str]:
    got = {key: tensor for key, tensor in got.items() if not key.endswith("rotary_emb.inv_freq")}
    assert got.keys() == expected.keys()
    return [key for key, tensor in expected.items() if not torch.equal(got[key], tensor)]


def test_the_published_files_merge_into_the_reference_s_model_exactly(
    files: Path, reference: dict[str, Tensor]
) -> None:
    config, merged = merge(MODEL.find(files, {}), dtype=torch.float32)
    assert config == read_sizes(golden("vtimellm-e2e") / "config.json")
    assert differing({key: tensor.float() for key, tensor in merged.items()}, reference) == []


def test_merged_matrices_in_16_bits_are_rounded_once(files: Path, reference: dict[str, Tensor]) -> None:
    _, merged = merge(MODEL.find(files, {}))
    changed_by_adapters = [key for key in merged if key.endswith("_proj.weight") and key.startswith("model.layers")]
    assert len(changed_by_adapters) == 14
    for key in changed_by_adapters:
        assert torch.equal(merged[key], reference[key].half())


def test_a_converted_folder_gives_the_model_of_the_reference(
    files: Path, reference: dict[str, Tensor], tmp_path: Path
) -> None:
    checkpoint, origin = read_source(files, parts={}, ignored=(), dtype=torch.float32)
    digest = write_folder(tmp_path / "mine", checkpoint, origin=origin, report=lambda *_: None)
    assert differing(read_folder(tmp_path / "mine"), reference) == []
    converted, original = (
        load_family("vtimellm", checkpoint=folder) for folder in (tmp_path / "mine", golden("vtimellm-e2e"))
    )
    assert (converted.checkpoint_digest, converted.num_parameters) == (digest, original.num_parameters)
    assert converted.encoder_digest == original.encoder_digest, "features are shared"
    for (name, ours), theirs in zip(converted.network.named_parameters(), original.network.parameters(), strict=True):
        assert torch.equal(ours, theirs), name


def test_a_reference_set_can_be_converted_too(reference: dict[str, Tensor]) -> None:
    checkpoint, _ = read_source(golden("vtimellm-e2e"), parts={}, ignored=(), dtype=None)
    assert differing(dict(checkpoint.tensors), reference) == []


@pytest.mark.parametrize("missing", ["archive", "folder"])
def test_clip_may_be_an_archive_or_a_folder(
    files: Path, reference: dict[str, Tensor], missing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if missing == "archive":
        (files / ARCHIVE).unlink()
    else:
        shutil.rmtree(files / CLIP)
        assert "does not say how many attention heads" in refusal(files), "the reference's heads are 8 wide, not 64"
        monkeypatch.setattr("model.checkpoints.openai_clip.HEAD_WIDTH", 8)
    config, merged = merge(MODEL.find(files, {}), dtype=torch.float32)
    assert config == read_sizes(golden("vtimellm-e2e") / "config.json")
    assert differing({key: tensor.float() for key, tensor in merged.items()}, reference) == []


def test_no_clip_at_all_is_refused(files: Path) -> None:
    shutil.rmtree(files / CLIP)
    (files / ARCHIVE).unlink()
    assert "There is neither clip/ViT-L-14.pt nor a folder of clip-vit-large-patch14" in refusal(files)


@pytest.mark.parametrize("file", BINARIES)
@pytest.mark.parametrize("kept", [0.0, 0.5, 0.95])
def test_a_file_that_was_cut_is_named(files: Path, file: str, kept: float) -> None:
    whole = (files / file).read_bytes()
    (files / file).write_bytes(whole[: int(len(whole) * kept)])
    assert f"{Path(file).name} is damaged or truncated" in refusal(files)


@pytest.mark.parametrize("file", [file for file in BINARIES if not file.endswith(NON_LORA)])
def test_a_tensor_with_one_changed_bit_is_named(files: Path, file: str) -> None:
    with zipfile.ZipFile(files / file) as archive:
        largest = archive.read(max(archive.infolist(), key=lambda entry: entry.file_size))
    content = bytearray((files / file).read_bytes())
    content[content.index(largest) + len(largest) // 2] ^= 1
    (files / file).write_bytes(content)
    assert Path(file).name in refusal(files)


@pytest.mark.parametrize("file", TEXTS)
def test_a_description_that_was_cut_is_named(files: Path, file: str) -> None:
    whole = (files / file).read_bytes()
    (files / file).write_bytes(whole[: len(whole) // 2])
    assert file in refusal(files)


@pytest.mark.parametrize("file", [*BINARIES, *TEXTS, f"{LLAMA}/tokenizer.model"])
def test_a_file_that_was_overwritten_is_named(files: Path, file: str) -> None:
    (files / file).write_bytes(b"<html>Not found</html>" * 100)
    assert Path(file).name in refusal(files)


@pytest.mark.parametrize("file", [PROJECTOR, *SHARDS, f"{STAGE2}/{ADAPTER}", f"{STAGE3}/{NON_LORA}"])
def test_a_file_that_is_absent_is_named(files: Path, file: str) -> None:
    (files / file).unlink()
    assert Path(file).name in refusal(files)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (f"{STAGE2}/{ADAPTER}", f"{STAGE3}/{ADAPTER}"),
        (f"{STAGE3}/{ADAPTER}", f"{STAGE2}/{ADAPTER}"),
        (PROJECTOR, f"{STAGE2}/{ADAPTER}"),
        (PROJECTOR, f"{CLIP}/pytorch_model.bin"),
        (f"{STAGE2}/{ADAPTER}", PROJECTOR),
        (f"{STAGE2}/{ADAPTER}", f"{STAGE2}/{NON_LORA}"),
        (f"{STAGE3}/{NON_LORA}", PROJECTOR),
        (SHARDS[0], SHARDS[1]),
        (f"{CLIP}/pytorch_model.bin", PROJECTOR),
        (ARCHIVE, f"{CLIP}/pytorch_model.bin"),
    ],
)
def test_a_file_in_place_of_another_is_refused_by_name(files: Path, one: str, other: str) -> None:
    shutil.copyfile(files / one, files / other)
    message = refusal(files)
    assert Path(other).name in message or f"{Path(other).parent} has a key that is not part of VTimeLLM" in message


def test_two_stages_that_are_the_same_are_refused(files: Path) -> None:
    shutil.rmtree(files / STAGE3)
    shutil.copytree(files / STAGE2, files / STAGE3)
    assert "stage2/adapter_model.bin and vtimellm-vicuna-v1-5-7b-stage3/adapter_model.bin hold the same adapter" in (
        refusal(files)
    )


def test_stages_2_and_3_that_changed_places_give_the_same_model_up_to_rounding(
    files: Path, reference: dict[str, Tensor]
) -> None:
    (files / STAGE2).rename(files / "aside")
    (files / STAGE3).rename(files / STAGE2)
    (files / "aside").rename(files / STAGE3)
    _, merged = merge(MODEL.find(files, {}), dtype=torch.float32)
    assert max(float((merged[key].float() - tensor).abs().max()) for key, tensor in reference.items()) < 1e-6


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        (PROJECTOR, drop("model.mm_projector.bias"), "mm_projector.bin lacks model.mm_projector.bias. It is not the"),
        (PROJECTOR, add("model.norm.weight"), "mm_projector.bin has a key that is not part of VTimeLLM: model.norm"),
        (PROJECTOR, narrow("model.mm_projector.weight", 8), "has the shapes [8, 768] and [40]"),
        (f"{STAGE2}/{NON_LORA}", add("base_model.model.lm_head.weight"), "trainables.bin has a key that is not part"),
        (f"{STAGE2}/{NON_LORA}", add("base_model.model.model.mm_projector.bias"), "has the shapes [40, 768] and [1]"),
        (f"{STAGE2}/{ADAPTER}", add("base_model.model.model.norm.weight"), "stage2/adapter_model.bin has a key that"),
        (
            f"{STAGE3}/{ADAPTER}",
            drop("base_model.model.model.layers.1.mlp.up"),
            "stage3/adapter_model.bin lacks the factors for model.layers.1.mlp.up_proj.weight",
        ),
        (SHARDS[0], drop("model.layers.0.mlp.up"), "pytorch_model-00001-of-00002.bin in"),
        (SHARDS[1], add("model.layers.7.bias"), "unknown keys: model.layers.7.bias"),
        (SHARDS[1], add("model.vision_tower.bias"), "vicuna-7b-v1.5 has a key that is not part of VTimeLLM"),
        (f"{CLIP}/pytorch_model.bin", add("visual.proj"), "clip-vit-large-patch14 has a key that is not part of"),
        (f"{CLIP}/pytorch_model.bin", drop("visual_projection"), "clip-vit-large-patch14 lacks visual_projection"),
        (
            f"{CLIP}/pytorch_model.bin",
            shrink("vision_model.post_layernorm.bias"),
            "are different CLIPs: they differ in vision_model.post_layernorm.bias",
        ),
        (f"{CLIP}/pytorch_model.bin", drop("vision_model.pre_layrnorm"), "they differ in vision_model.pre_layrnorm"),
    ],
)
def test_a_wrong_file_is_refused_by_name(files: Path, file: str, change: Change, message: str) -> None:
    changed(files / file, change)
    assert message in refusal(files)


def test_a_bare_delta_is_refused(files: Path) -> None:
    for shard in SHARDS:
        if "model.norm.weight" in torch.load(files / shard, weights_only=True):
            changed(files / shard, shrink("model.norm.weight"))
    assert "holds a bare delta" in refusal(files)


def test_a_clip_without_a_layer_is_refused(files: Path) -> None:
    (files / ARCHIVE).unlink()
    changed(files / CLIP / "pytorch_model.bin", drop("vision_model.encoder.layers.1.mlp.fc1"))
    assert "parameters that no key covers: vision_tower.encoder.layers.1.mlp.fc1" in refusal(files)


def rewritten(path: Path, **values: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_bytes()) | values))


@pytest.mark.parametrize(
    ("file", "values", "message"),
    [
        (f"{LLAMA}/config.json", {"hidden_size": 64}, "CLIP gives 768 values and the language model is 64 wide"),
        (f"{LLAMA}/config.json", {"rope_theta": 1e6}, "a LLaMA of a later generation"),
        (f"{LLAMA}/config.json", {"max_position_embeddings": 2048}, "stage2 was trained on a LLaMA of other sizes"),
        (f"{LLAMA}/config.json", {"vocab_size": 421}, "tokenizer.model of 420 pieces for 421 rows of embeddings"),
        (f"{STAGE3}/config.json", {"model_type": "chatglm"}, "stage3/config.json is of a model of type 'chatglm'"),
        (f"{STAGE3}/config.json", {"rms_norm_eps": 1e-6}, "stage3 was trained on a LLaMA of other sizes than vicuna"),
        (f"{STAGE2}/adapter_config.json", {"r": 8}, "stage2/adapter_model.bin has factors for"),
        (f"{STAGE2}/adapter_config.json", {"use_rslora": True}, "stage2 sets use_rslora to True"),
        (f"{CLIP}/config.json", {"vision_config": {"hidden_size": 32}}, "it is not CLIP's"),
    ],
)
def test_another_model_s_description_is_refused(
    files: Path, file: str, values: dict[str, object], message: str
) -> None:
    rewritten(files / file, **values)
    assert message in refusal(files)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"hidden_act": "gelu"}, "its activation is gelu"),
        ({"image_size": 448}, "they differ in sizes"),
        ({"num_hidden_layers": 2}, "they differ in sizes"),
        ({"layer_norm_eps": 1e-6}, "is another CLIP than VTimeLLM's"),
    ],
)
def test_another_clip_is_refused(files: Path, values: dict[str, object], message: str) -> None:
    path = files / CLIP / "config.json"
    rewritten(path, vision_config=json.loads(path.read_bytes())["vision_config"] | values)
    assert message in refusal(files)


def test_another_tokenizer_is_refused(files: Path) -> None:
    (files / LLAMA / "tokenizer.model").write_bytes(model_file(llama_like()))
    assert "tokenizer.model of 354 pieces for 420 rows of embeddings. VTimeLLM needs Vicuna 7B v1.5" in refusal(files)


def test_a_llama_of_the_published_width_must_have_the_published_sizes(
    files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, _ = merge(MODEL.find(files, {}))
    for published, message in (
        ({"decoder": {"rms_eps": 1e-6}}, "vicuna-7b-v1.5 holds a LLaMA of other sizes. VTimeLLM needs Vicuna 7B v1.5"),
        ({"vision": {"image_size": 336}}, "ViT-L-14.pt is another CLIP than VTimeLLM's"),
    ):
        sizes = config.to_json()
        for module, values in published.items():
            sizes[module] |= values
        monkeypatch.setattr("model.families.vtimellm.published.PUBLISHED_7B", type(PUBLISHED_7B).from_json(sizes))
        assert message in refusal(files)


@pytest.mark.parametrize("prefix", ["base_model.model.model.", "base_model.model.", "model."])
def test_a_projection_that_a_stage_trained_further_replaces_that_of_stage_1(files: Path, prefix: str) -> None:
    bias = torch.arange(40.0).half()
    torch.save({f"{prefix}mm_projector.bias": bias}, files / STAGE3 / NON_LORA)
    _, merged = merge(MODEL.find(files, {}))
    assert torch.equal(merged["model.mm_projector.bias"], bias)
    stage1 = torch.load(files / PROJECTOR, weights_only=True)
    assert torch.equal(merged["model.mm_projector.weight"], stage1["model.mm_projector.weight"])


def test_an_ignored_key_is_accepted(files: Path) -> None:
    expected = read_source(files, parts={}, ignored=(), dtype=None)[0].tensors.keys()
    for file, key in ((PROJECTOR, "a"), (SHARDS[0], "b"), (f"{CLIP}/pytorch_model.bin", "c"), (NON_LORA, "d")):
        changed(files / (f"{STAGE2}/{file}" if file == NON_LORA else file), add(key))
    checkpoint, _ = read_source(files, parts={}, ignored=("a", "b", "c", "d"), dtype=None)
    assert checkpoint.tensors.keys() == expected


@pytest.mark.parametrize(
    ("part", "path"),
    [("archive", ARCHIVE), ("vision", CLIP), ("llama", LLAMA), ("stage1", STAGE1), ("stage2", STAGE2)],
)
def test_a_part_that_is_elsewhere_can_be_named(files: Path, tmp_path: Path, part: str, path: str) -> None:
    expected = read_openai_clip(files / ARCHIVE)
    elsewhere = (files / path).rename(tmp_path / "elsewhere")
    checkpoint, _ = read_source(files, parts={part: elsewhere}, ignored=(), dtype=None)
    assert all(torch.equal(checkpoint.tensors[key], tensor) for key, tensor in expected.items())


def test_an_unknown_part_is_refused(files: Path) -> None:
    assert "VTimeLLM has no part 'clip'; its parts are archive, vision, llama, stage1, stage2, stage3." in refusal(
        files, clip=files
    )

"""Video-LLaMA's six published files, in small sizes, are merged exactly; wrong ones are refused by name."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from model.checkpoints.folder import write_folder
from model.families import load_family
from model.families.video_llama.family import read_source
from model.families.video_llama.published import MODEL, PUBLISHED, PUBLISHED_7B, read_published
from model.text.tokenizer import TokenizerError
from model.weights import WeightsError
from tests.parity.goldens import assert_near, tensors
from tests.parity.spoiling import Change, add, changed, drop, narrow
from tests.published import golden

VIDEO, AUDIO = "VL_LLaMA_2_7B_Finetuned.pth", "AL_LLaMA_2_7B_Finetuned.pth"
VISION, QFORMER, IMAGEBIND = "eva_vit_g.pth", "blip2_pretrained_flant5xxl.pth", "imagebind_huge.pth"
LLAMA = "llama-2-7b-chat-hf"


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """A copy of the published files, which a test may damage."""
    folder = tmp_path / "published"
    shutil.copytree(golden("video-llama-e2e-ckpt"), folder, copy_function=shutil.copyfile)
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o755)
    return folder


def sizes() -> Path:
    return golden("video-llama-e2e") / "config.json"


def refusal(folder: Path | None, **parts: Path) -> str:
    with pytest.raises((WeightsError, TokenizerError)) as refused:
        read_source(folder, parts={"config": sizes(), **parts}, ignored=(), dtype=None)
    return str(refused.value)


def test_the_published_files_convert_to_exactly_the_tensors_of_the_reference() -> None:
    source = golden("video-llama-e2e-ckpt")
    checkpoint, _ = read_source(source, parts={"config": sizes()}, ignored=(), dtype=torch.float32)
    reference = tensors(golden("video-llama-e2e") / "weights.safetensors")
    assert checkpoint.tensors.keys() == reference.keys()
    assert [key for key in reference if not torch.equal(checkpoint.tensors[key].float(), reference[key])] == []


def test_a_converted_folder_is_the_model_of_the_reference(tmp_path: Path) -> None:
    source = golden("video-llama-e2e-ckpt")
    checkpoint, origin = read_source(source, parts={"config": sizes()}, ignored=(), dtype=None)
    digest = write_folder(tmp_path / "mine", checkpoint, origin=origin, report=lambda *_: None)
    converted, original = (
        load_family("video-llama", checkpoint=folder) for folder in (tmp_path / "mine", golden("video-llama-e2e"))
    )
    assert converted.checkpoint_digest == digest
    assert converted.network.config == original.network.config
    draw = torch.Generator().manual_seed(1)
    frames, mel = torch.randn(1, 8, 3, 224, 224, generator=draw), torch.randn(1, 8, 1, 128, 204, generator=draw)
    ours, theirs = converted.encode(frames, mel), original.encode(frames, mel)
    for part in ("video", "audio"):
        assert_near(ours[part], theirs[part], part)


def test_without_the_two_files_for_sound_the_model_does_not_hear(files: Path, tmp_path: Path) -> None:
    for name in (AUDIO, IMAGEBIND):
        (files / name).unlink()
    checkpoint, origin = read_source(files, parts={"config": sizes()}, ignored=(), dtype=None)
    assert not any(key.startswith("audio") for key in checkpoint.tensors)
    write_folder(tmp_path / "mine", checkpoint, origin=origin, report=lambda *_: None)
    family = load_family("video-llama", checkpoint=tmp_path / "mine")
    assert family.inputs is not None
    assert family.inputs.sound is None
    assert [part.name for part in family.parts] == ["video"]


@pytest.mark.parametrize(("absent", "named"), [(AUDIO, IMAGEBIND), (IMAGEBIND, AUDIO)])
def test_one_of_the_two_files_for_sound_is_refused_without_the_other(files: Path, absent: str, named: str) -> None:
    (files / absent).unlink()
    assert refusal(files).startswith(f"{named} is one of the two files for sound")


def garbage(path: Path) -> None:
    path.write_bytes(b"garbage" * 64)


def half(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize("damage", [garbage, half])
@pytest.mark.parametrize("name", [VIDEO, AUDIO, VISION, QFORMER, IMAGEBIND, f"{LLAMA}/pytorch_model.bin"])
def test_a_damaged_or_cut_file_is_refused_by_name(files: Path, name: str, damage: Callable[[Path], None]) -> None:
    damage(files / name)
    assert Path(name).name in refusal(files)


@pytest.mark.parametrize("name", [VIDEO, VISION, QFORMER])
def test_an_absent_file_is_named(files: Path, name: str) -> None:
    (files / name).unlink()
    assert f"has no {name}" in refusal(files)


@pytest.mark.parametrize(
    ("first", "second"), [(VIDEO, AUDIO), (VIDEO, QFORMER), (VISION, QFORMER), (AUDIO, IMAGEBIND), (VISION, IMAGEBIND)]
)
def test_files_that_are_swapped_are_refused_by_name(files: Path, first: str, second: str) -> None:
    (files / first).rename(files / "other")
    (files / second).rename(files / first)
    (files / "other").rename(files / second)
    said = refusal(files)
    assert f"has a key that is not part of {MODEL}" in said
    assert first in said or second in said


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        (VIDEO, add("lora.weight"), f"{VIDEO} has a key that is not part of {MODEL}: lora.weight"),
        (VIDEO, drop("llama_proj.weight"), f"{VIDEO} lacks llama_proj.weight"),
        (AUDIO, drop("audio_llama_proj.weight"), f"{AUDIO} lacks audio_llama_proj.weight"),
        (VIDEO, narrow("llama_proj.weight", 40), f"{VIDEO} projects to 40 values"),
        (AUDIO, narrow("audio_llama_proj.weight", 40), f"{AUDIO} projects to 40 values"),
        (VIDEO, drop("video_query_tokens"), "no key covers: video_query_tokens"),
        (IMAGEBIND, drop("modality_trunks.audio.blocks.1.attn.bias_k"), "no key covers: audio_encoder.blocks.1"),
        (VISION, drop("blocks.1.norm1"), "no key covers: visual_encoder.blocks.1.norm1"),
        (AUDIO, narrow("audio_position_embedding.weight", 4), "audio_position_embedding.weight [4, 28]"),
    ],
)
def test_a_wrong_file_is_refused(files: Path, name: str, change: Change, message: str) -> None:
    changed(files / name, change)
    assert message in refusal(files)


def test_the_file_of_one_generation_is_refused_with_the_llama_of_the_other(files: Path) -> None:
    config = files / LLAMA / "config.json"
    config.write_text(json.dumps(json.loads(config.read_bytes()) | {"vocab_size": 32001}))
    assert f"{VIDEO} was trained with another LLaMA" in refusal(files)
    config.write_text(json.dumps(json.loads(config.read_bytes()) | {"vocab_size": 32000}))
    (files / VIDEO).rename(files / "finetune-vicuna7b-v2.pth")
    assert "finetune-vicuna7b-v2.pth was trained with another LLaMA" in refusal(files)


def test_sizes_that_are_not_published_must_be_named(files: Path) -> None:
    with pytest.raises(WeightsError, match=r"neither the 7B nor the 13B .* --part config=FILE"):
        read_published(files, {}, ignored=())


def test_two_models_in_a_folder_are_named(files: Path) -> None:
    shutil.copyfile(files / VIDEO, files / "VL_LLaMA_2_13B_Finetuned.pth")
    said = refusal(files)
    assert VIDEO in said
    assert "VL_LLaMA_2_13B_Finetuned.pth" in said


def test_the_style_of_the_prompt_follows_from_the_llama() -> None:
    assert PUBLISHED_7B.style == "llama-2"
    parts = PUBLISHED.find(golden("video-llama-e2e-ckpt"), {})
    assert parts.keys() == {"vision", "qformer", "llama", "video", "audio", "imagebind"}

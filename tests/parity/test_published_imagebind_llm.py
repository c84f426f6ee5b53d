"""ImageBind-LLM's published files, in small sizes, are merged exactly; damaged, wrong and swapped ones are refused."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from model.checkpoints.folder import write_folder
from model.families import load_family
from model.families.imagebind_llm.family import read_source
from model.families.imagebind_llm.published import PUBLISHED_7B
from model.text.tokenizer import TokenizerError
from model.weights import WeightsError
from tests.model.text.sentencepiece_files import llama_like, model_file
from tests.parity.goldens import assert_near, tensors
from tests.parity.spoiling import Change, add, changed, drop, narrow
from tests.published import golden

IMAGEBIND, ADAPTER = "ckpts/imagebind_w3D.pth", "7B.pth"
BASE, MERGED = "llama/7B", "llama/7B_chinese"
LLAMA = f"{MERGED}/consolidated.00.pth"


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """A copy of the published files, which a test may damage, with the config that names their heads."""
    folder = tmp_path / "published"
    shutil.copytree(golden("imagebind-llm-e2e-ckpt"), folder, copy_function=shutil.copyfile)
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o755)
    return folder


def config(name: str = "e2e") -> Path:
    return golden(f"imagebind-llm-{name}") / "config.json"


def refusal(folder: Path | None, **parts: Path) -> str:
    with pytest.raises((WeightsError, TokenizerError)) as refused:
        read_source(folder, parts={"config": config(), **parts}, ignored=(), dtype=None)
    return str(refused.value)


@pytest.mark.parametrize("name", ["open", "e2e"])
def test_the_published_files_convert_to_exactly_the_tensors_of_the_reference(name: str) -> None:
    source = golden(f"imagebind-llm-{name}-ckpt")
    checkpoint, _ = read_source(source, parts={"config": config(name)}, ignored=(), dtype=torch.float32)
    reference = tensors(golden(f"imagebind-llm-{name}") / "weights.safetensors")
    assert checkpoint.tensors.keys() == reference.keys()
    assert [key for key in reference if not torch.equal(checkpoint.tensors[key].float(), reference[key])] == []
    assert (checkpoint.beside.keys() == {"tokenizer.model"}) == (name == "e2e")


def test_a_converted_folder_is_the_model_of_the_reference(tmp_path: Path) -> None:
    source = golden("imagebind-llm-e2e-ckpt")
    checkpoint, origin = read_source(source, parts={"config": config()}, ignored=(), dtype=torch.float32)
    digest = write_folder(tmp_path / "mine", checkpoint, origin=origin, report=lambda *_: None)
    converted = load_family("imagebind-llm", checkpoint=tmp_path / "mine")
    original = load_family("imagebind-llm", checkpoint=golden("imagebind-llm-e2e"))
    assert converted.checkpoint_digest == digest
    assert converted.network.config == original.network.config
    for ours, theirs in zip(converted.network.parameters(), original.network.parameters(), strict=True):
        assert_near(ours, theirs, "parameters")


def test_llama_plus_the_delta_is_the_merged_llama(files: Path) -> None:
    base = torch.load(files / BASE / "consolidated.00.pth", weights_only=True)
    merged = torch.load(files / LLAMA, weights_only=True)
    expected, _ = read_source(files, parts={"config": config()}, ignored=(), dtype=None)
    delta = {key: tensor.float() - base[key].float() for key, tensor in merged.items()}
    beside = files / "llama/7B_chinese_delta"
    beside.mkdir()
    torch.save(delta, beside / "consolidated.00.pth")
    elsewhere = {"adapter": files / ADAPTER, "imagebind": files / IMAGEBIND}
    cases: list[tuple[Path, dict[str, Path]]] = [
        (files, {}),  # the merged one is there
        (files / "llama", elsewhere),
        (files, {"delta": beside}),  # a named delta is added to LLaMA, not to the merged one
        (files, {"delta": beside, "llama": files / BASE}),
        (files, {"llama": files / MERGED}),
    ]
    found = [
        read_source(folder, parts={"config": config(), **parts}, ignored=(), dtype=None) for folder, parts in cases
    ]
    shutil.rmtree(files / MERGED)
    found.append(read_source(files, parts={"config": config()}, ignored=(), dtype=None))
    for checkpoint, _ in found:
        assert checkpoint.tensors.keys() == expected.tensors.keys()
        for key, tensor in expected.tensors.items():
            assert torch.equal(checkpoint.tensors[key].float(), tensor.float()), key


def test_the_merged_llama_is_taken_if_both_are_there_unless_the_other_is_named(files: Path) -> None:
    key = "llama.layers.0.attention.wq.weight"
    reference = tensors(golden("imagebind-llm-e2e") / "weights.safetensors")[key]
    merged, _ = read_source(files, parts={"config": config()}, ignored=(), dtype=None)
    base, _ = read_source(files, parts={"config": config(), "llama": files / BASE}, ignored=(), dtype=None)
    assert torch.equal(merged.tensors[key].float(), reference)
    assert not torch.equal(base.tensors[key].float(), reference)


def garbage(path: Path) -> None:
    path.write_bytes(b"garbage" * 64)


def half(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize("damage", [garbage, half, Path.unlink])
@pytest.mark.parametrize("name", [IMAGEBIND, ADAPTER, LLAMA, f"{MERGED}/params.json", "llama/tokenizer.model"])
def test_a_damaged_cut_or_absent_file_is_refused_by_name(
    files: Path, name: str, damage: Callable[[Path], None]
) -> None:
    damage(files / name)
    parts = {"tokenizer": files / name} if name.endswith("tokenizer.model") else {}
    if name.startswith(MERGED):
        parts = {"llama": files / MERGED}
    assert Path(name).name in refusal(files, **parts)


def test_files_that_are_swapped_are_refused_by_name(files: Path) -> None:
    (files / ADAPTER).rename(files / "other")
    (files / IMAGEBIND).rename(files / ADAPTER)
    (files / "other").rename(files / IMAGEBIND)
    assert "7B.pth has a key that is not part of ImageBind-LLM: modality_heads" in refusal(files)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        (ADAPTER, drop("prefix_query"), "7B.pth is the adapter of another LLaMA: prefix_query.weight is missing"),
        (ADAPTER, narrow("prefix_query.weight", 2), "prefix_query.weight is [2, 48], not [3, 48]"),
        (ADAPTER, drop("llama.layers.1.attention.gate"), "no key covers: adapters.1.gate"),
        (ADAPTER, add("llama.layers.0.attention.wk.bias"), "7B.pth has a key that is not part of ImageBind-LLM"),
        (ADAPTER, drop("image_bind_f2_3"), "no key covers: bridge.3.f2.weight"),
        (LLAMA, drop("layers.1.attention.wq"), "no key covers: language_model.model.layers.1.self_attn.q_proj.weight"),
        (LLAMA, add("layers.0.attention.gate"), "7B_chinese has a key that is not part of ImageBind-LLM"),
        (LLAMA, narrow("tok_embeddings.weight", 400), "vocab_size is 400, not 420"),
        (IMAGEBIND, drop("modality_trunks.audio.blocks.1."), "no key covers: audio.blocks.1."),
        (IMAGEBIND, add("llama_proj.weight"), "imagebind_w3D.pth has a key that is not part of ImageBind-LLM"),
    ],
)
def test_a_file_with_other_tensors_is_refused(files: Path, name: str, change: Change, message: str) -> None:
    changed(files / name, change)
    assert message in refusal(files)


def test_the_pretrained_adapter_is_refused(files: Path) -> None:
    def pretrained(state: dict[str, torch.Tensor]) -> None:
        for key in [key for key in state if "lora_" in key or "bias" in key]:
            del state[key]

    changed(files / ADAPTER, pretrained)
    assert "7B.pth has no low-rank updates: it is the pre-trained adapter" in refusal(files)


@pytest.mark.parametrize(
    ("name", "key"),
    [
        (ADAPTER, "llama.layers.2.attention.gate"),
        (LLAMA, "layers.0.attention.wv.weight"),
        (IMAGEBIND, "modality_heads.vision.2.weight"),
    ],
)
def test_values_that_are_not_finite_are_refused(files: Path, name: str, key: str) -> None:
    def spoil(state: dict[str, torch.Tensor]) -> None:
        state[key].view(-1)[0] = torch.nan

    changed(files / name, spoil)
    assert f"{key} has values that are not finite" in refusal(files)


def test_another_llama_is_refused(files: Path) -> None:
    path = files / MERGED / "params.json"
    path.write_text(json.dumps(json.loads(path.read_bytes()) | {"n_heads": 6}))
    assert "num_heads is 6, not 4" in refusal(files)
    (files / MERGED / "consolidated.01.pth").write_bytes(b"")
    assert "holds consolidated.01.pth too" in refusal(files)


def test_another_tokenizer_is_refused(files: Path) -> None:
    (files / "llama/tokenizer.model").write_bytes(model_file(llama_like()))
    assert "has 354 pieces for 420 rows of embeddings" in refusal(files)


def test_other_sizes_need_a_config_that_names_their_heads(files: Path) -> None:
    with pytest.raises(WeightsError) as refused:
        read_source(files, parts={}, ignored=(), dtype=None)
    assert "imagebind_w3D.pth is not the published ImageBind" in str(refused.value)
    assert "--part config=FILE" in str(refused.value)
    assert PUBLISHED_7B.vision.num_heads == 16


def test_an_unknown_part_is_refused(files: Path) -> None:
    assert "has no part 'clip'; its parts are imagebind, llama, delta, adapter" in refusal(files, clip=files)

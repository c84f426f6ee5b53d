"""MobiLlama's published folders, in small sizes, are read exactly; wrong ones are refused by name."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from model.checkpoints.folder import read_folder, write_folder
from model.checkpoints.pulled import PULLED, write_pulled
from model.families import load_family
from model.families.mobillama.family import PROMPTS, PUBLISHED_SAMPLING, read_source
from model.families.mobillama.published import PromptChoice
from model.text.tokenizer import TokenizerError
from model.weights import WeightsError
from tests.model.text.sentencepiece_files import llama_like, model_file
from tests.parity.goldens import tensors
from tests.parity.spoiling import Change, add, changed, drop, narrow
from tests.published import golden

BASE, CHAT = "MobiLlama-05B", "MobiLlama-05B-Chat"
FIRST, SECOND = (f"pytorch_model-{number:05}-of-00002.bin" for number in (1, 2))
MLP = "model.layers.{}.mlp.up_proj.weight"


@pytest.fixture(params=[BASE, CHAT])
def published(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """One of the published folders, which a test may damage."""
    return copied(str(request.param), tmp_path)


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return copied(BASE, tmp_path)


@pytest.fixture
def chat(tmp_path: Path) -> Path:
    return copied(CHAT, tmp_path)


@pytest.fixture
def reference() -> dict[str, Tensor]:
    return tensors(golden("mobillama-e2e") / "weights.safetensors")


def copied(name: str, tmp_path: Path) -> Path:
    return shutil.copytree(golden("mobillama-e2e-ckpt") / name, tmp_path / name)


def converted(source: Path, folder: Path) -> str:
    """Convert to float32; returns the digest."""
    checkpoint, origin = read_source(source, parts={}, ignored=(), dtype=torch.float32)
    return write_folder(folder, checkpoint, origin=origin, report=lambda *_: None)


def refusal(folder: Path, **parts: Path) -> str:
    with pytest.raises((WeightsError, TokenizerError)) as refused:
        read_source(folder, parts=parts, ignored=(), dtype=None)
    return str(refused.value)


def test_a_published_folder_converts_to_exactly_the_tensors_of_the_original(
    published: Path, reference: dict[str, Tensor], tmp_path: Path
) -> None:
    digest = converted(published, tmp_path / "mine")
    written = read_folder(tmp_path / "mine")
    assert written.keys() == reference.keys()
    assert [key for key, tensor in reference.items() if not torch.equal(written[key], tensor)] == []
    loaded = load_family("mobillama", checkpoint=tmp_path / "mine")
    assert loaded.checkpoint_digest == digest
    first, *others = (layer.mlp for layer in loaded.language_model.model.layers)
    assert all(mlp is first for mlp in others)


def test_half_precision_is_kept_although_the_tensors_share_their_storage(chat: Path, tmp_path: Path) -> None:
    checkpoint, origin = read_source(chat, parts={}, ignored=(), dtype=None)
    write_folder(tmp_path / "mine", checkpoint, origin=origin, report=lambda *_: None)
    assert {tensor.dtype for tensor in read_folder(tmp_path / "mine").values()} == {torch.float16}


def test_every_layout_of_the_same_weights_becomes_the_same_folder(
    chat: Path, reference: dict[str, Tensor], tmp_path: Path
) -> None:
    (chat / "pytorch_model.bin").unlink()
    kept = {key: tensor for key, tensor in reference.items() if ".mlp." not in key or "layers.2." in key}
    save_file(kept, chat / "model.safetensors")
    digests = {converted(chat, tmp_path / "a"), converted(golden("mobillama-e2e-ckpt") / CHAT, tmp_path / "b")}
    digests |= {converted(golden("mobillama-e2e"), tmp_path / "c")}
    assert len(digests) == 1


def test_a_folder_can_be_named_and_can_lie_in_another(chat: Path) -> None:
    read_source(None, parts={"llama": chat}, ignored=(), dtype=None)
    read_source(chat.parent, parts={}, ignored=(), dtype=None)
    assert "MobiLlama has no part 'video'; its parts are llama." in refusal(chat, video=chat)
    assert "name one with --part llama=FOLDER" in refusal(chat / "absent")


@pytest.mark.parametrize(
    ("name", "prompt"),
    [
        (BASE, "plain"),
        (CHAT, "one-shot"),
        ("mine", "one-shot"),
        ("mobillama-05b", "plain"),
        ("MOBILLAMA-08B", "plain"),
        ("mobillama-1b-fp16", "plain"),
        ("mobillama-1b-chat", "one-shot"),
        ("models--MBZUAI--MobiLlama-1B/snapshots/0123", "plain"),
        ("models--MBZUAI--MobiLlama-1B-Chat/snapshots/0123", "one-shot"),
    ],
)
def test_the_name_of_the_repository_decides_how_the_model_is_prompted(
    chat: Path, tmp_path: Path, name: str, prompt: str
) -> None:
    folder = chat.rename(tmp_path / "downloads") if name == CHAT else chat
    (tmp_path / "repositories" / name).parent.mkdir(parents=True)
    converted(folder.rename(tmp_path / "repositories" / name), tmp_path / "converted")
    loaded = load_family("mobillama", checkpoint=tmp_path / "converted")
    assert loaded.network.config.to_json()["prompt"] == prompt
    assert (loaded.template, loaded.default_sampling) == PROMPTS["plain" if prompt == "plain" else "one-shot"]
    assert PUBLISHED_SAMPLING.repetition_penalty == 1.0


@pytest.mark.parametrize(
    ("repository", "folder", "prompt"),
    [
        ("MBZUAI/MobiLlama-05B", "mine", "plain"),
        ("MBZUAI/MobiLlama-05B", "my-chat", "plain"),
        ("MBZUAI/MobiLlama-05B-Chat", "mobillama-05b", "one-shot"),
    ],
)
def test_the_repository_that_pull_recorded_counts_more_than_the_folder_s_name(
    chat: Path, tmp_path: Path, repository: str, folder: str, prompt: str
) -> None:
    source = chat.rename(tmp_path / folder)
    write_pulled(source, repository)
    checkpoint, _ = read_source(source, parts={}, ignored=(), dtype=None)
    assert checkpoint.sizes["prompt"] == prompt
    assert checkpoint.notes == (PromptChoice(prompt=checkpoint.sizes["prompt"], source=repository).note(),)
    (source / PULLED).write_text('{"repository": 5}')
    assert "must name a repository as text, not 5." in refusal(source)


def test_a_prompt_that_no_name_tells_is_said(chat: Path, tmp_path: Path) -> None:
    checkpoint, _ = read_source(chat.rename(tmp_path / "mine"), parts={}, ignored=(), dtype=None)
    (note,) = checkpoint.notes
    assert note.startswith("The prompt is one-shot, as for a chat model: no name tells which model this is")
    assert PULLED in note


def unshare(state: dict[str, Tensor]) -> None:
    """Give each layer an MLP of its own, as the 1B has it."""
    for number in range(4):
        for kind in ("gate", "up", "down"):
            key = f"model.layers.{number}.mlp.{kind}_proj.weight"
            state[key] = state[key] + number


def test_unequal_mlps_are_a_model_without_sharing(chat: Path, tmp_path: Path) -> None:
    changed(chat / "pytorch_model.bin", unshare)
    converted(chat, tmp_path / "mine")
    loaded = load_family("mobillama", checkpoint=tmp_path / "mine")
    assert not loaded.network.config.to_json()["shared_mlp"]
    shared = load_family("mobillama", checkpoint=golden("mobillama-e2e"))
    mlp = sum(parameter.numel() for parameter in shared.language_model.model.layers[0].mlp.parameters())
    assert loaded.num_parameters - shared.num_parameters == 3 * mlp


@pytest.mark.parametrize("number", [0, 1, 3])
def test_mlps_of_which_one_differs_are_refused_by_name(chat: Path, number: int) -> None:
    key = MLP.format(number)
    changed(chat / "pytorch_model.bin", lambda state: state.update({key: state[key] + 1}))
    message = refusal(chat)
    assert f"{MLP.format(max(1, number))} differs from the layer before it" in message
    assert "the layers share one MLP in part only" in message


def test_an_mlp_that_equals_another_one_is_refused_by_name(chat: Path) -> None:
    changed(chat / "pytorch_model.bin", unshare)
    changed(chat / "pytorch_model.bin", lambda state: state.update({MLP.format(2): state[MLP.format(1)].clone()}))
    assert f"{MLP.format(2)} is equal to the layer before it" in refusal(chat)


def test_a_missing_layer_of_a_model_without_sharing_is_refused(chat: Path) -> None:
    changed(chat / "pytorch_model.bin", unshare)
    changed(chat / "pytorch_model.bin", drop("model.layers.3.mlp"))
    assert "no key covers: language_model.model.layers.3.mlp.down_proj.weight" in refusal(chat)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (drop("lm_head"), "no key covers: language_model.lm_head.weight"),
        (drop("model.layers.1.self_attn.q"), "no key covers: language_model.model.layers.1.self_attn.q_proj.weight"),
        (add("model.layers.0.self_attn.q_proj.bias"), "not part of MobiLlama: model.layers.0.self_attn.q_proj.bias"),
        (add("model.layers.9.input_layernorm.weight"), "unknown keys: model.layers.9.input_layernorm.weight"),
        (
            narrow("model.layers.2.self_attn.k_proj.weight", 16),
            "differ: model.layers.2.self_attn.k_proj.weight [16, 48]",
        ),
        (narrow("model.embed_tokens.weight", 400), "shapes that differ: model.embed_tokens.weight [400, 48]"),
    ],
)
def test_a_wrong_key_is_refused_by_name(chat: Path, change: Change, message: str) -> None:
    changed(chat / "pytorch_model.bin", change)
    assert message in refusal(chat)


def test_an_ignored_key_is_accepted(chat: Path) -> None:
    changed(chat / "pytorch_model.bin", add("lora"))
    read_source(chat, parts={}, ignored=("lora",), dtype=None)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"vocab_size": 400}, "has 420 pieces, but config.json names 400"),
        ({"num_hidden_layers": 8}, "parameters that no key covers: language_model.model.layers.4."),
        ({"rope_theta": 5e5}, "a LLaMA of a later generation"),
        ({"tie_word_embeddings": True}, "the tie_word_embeddings in its config.json is True"),
        ({"hidden_act": "gelu"}, "the hidden_act in its config.json is 'gelu'"),
        ({"hidden_size": "48"}, "width must be a whole number from 1 to 262144, not '48'"),
        ({"num_attention_heads": 5}, "5 heads do not divide the width 48"),
        ({"num_attention_heads": None}, "lacks 'num_attention_heads'; it is not a LLaMA's"),
    ],
)
def test_another_config_is_refused(chat: Path, values: dict[str, object], message: str) -> None:
    path = chat / "config.json"
    known = {key: value for key, value in (json.loads(path.read_bytes()) | values).items() if value is not None}
    path.write_text(json.dumps(known))
    assert message in refusal(chat)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[:64] = bytes(64)
    path.write_bytes(content)


@pytest.mark.parametrize("damage", [cut, flip, Path.unlink])
@pytest.mark.parametrize(
    ("repository", "file"),
    [
        *((BASE, name) for name in (FIRST, SECOND, "config.json", "tokenizer.model", "pytorch_model.bin.index.json")),
        *((CHAT, name) for name in ("pytorch_model.bin", "config.json", "tokenizer.model")),
    ],
)
def test_each_damaged_or_absent_file_is_refused_by_name(
    tmp_path: Path, repository: str, file: str, damage: Callable[[Path], None]
) -> None:
    folder = copied(repository, tmp_path)
    damage(folder / file)
    is_absent_index = damage is Path.unlink and file.endswith(".index.json")
    assert ("neither model.safetensors nor pytorch_model.bin" if is_absent_index else file) in refusal(folder)


def test_shards_that_were_swapped_are_refused_by_name(base: Path) -> None:
    (base / FIRST).rename(base / "other")
    (base / SECOND).rename(base / FIRST)
    (base / "other").rename(base / SECOND)
    assert f"{FIRST} in {base} lacks lm_head.weight" in refusal(base)


def test_another_model_s_tokenizer_is_refused_by_name(chat: Path) -> None:
    (chat / "tokenizer.model").write_bytes(model_file(llama_like()))
    assert f"The tokenizer.model of {chat} has 354 pieces, but config.json names 420" in refusal(chat)


def test_another_model_s_weights_are_refused(chat: Path) -> None:
    weights = tensors(golden("mobillama-open") / "weights.safetensors")
    (chat / "pytorch_model.bin").unlink()
    save_file(weights, chat / "model.safetensors")
    assert "shapes that differ: lm_head.weight [97, 48] for [420, 48]" in refusal(chat)

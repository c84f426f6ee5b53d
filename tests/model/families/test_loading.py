"""Every family: its small model, and loading it from checkpoint folders."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from model.checkpoints.folder import read_folder
from model.engine.sampling_params import SamplingParams
from model.families import default_dtype, family_module, family_names, load_family
from model.families.videochat.family import DEFAULT_CHECKPOINT
from model.family import Family, blank, count_prompt_tokens
from model.quantization import Quantization
from model.role import Role
from model.text.conversation import Conversation
from model.text.tokenizer import TokenizerError
from model.weights import WeightsError, seeded
from tests.model.families.conversations import asked
from tests.model.test_quantization import LIBRARIES
from tests.model.text.sentencepiece_files import llama_like, model_file

TOKENIZERS = {
    "imagebind-llm": model_file(llama_like()),
    "mobillama": model_file(llama_like()),
    "video-chatgpt": model_file(llama_like()),
    "video-llama": model_file(llama_like()),
    "video-llava": model_file(llama_like()),
    "video-llava-hf": model_file(llama_like()),
    "vtimellm": model_file(llama_like()),
    "videochat": (DEFAULT_CHECKPOINT / "tokenizer.model").read_bytes(),
}


@pytest.fixture(scope="module", params=family_names())
def small(request: pytest.FixtureRequest) -> Family:
    return load_family(str(request.param))


@pytest.fixture
def seeing(small: Family) -> Family:
    """The small model, if it sees videos."""
    if small.inputs is None:
        pytest.skip("has no encoder")
    return small


@pytest.fixture(scope="module")
def saved(small: Family, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint folder of the small model, in two shards, without default sampling."""
    folder = tmp_path_factory.mktemp("checkpoints") / "mine"
    folder.mkdir()
    if small.name == "videochat":
        weights = read_folder(DEFAULT_CHECKPOINT)
    else:  # drawn again, because a network may have merged them
        network = blank(type(small.network), small.network.config)
        weights = seeded(network, seed=family_module(small.name).TINY_SEED)
    names = sorted(weights)
    save_file({name: weights[name] for name in names[::2]}, folder / "even.safetensors")
    save_file({name: weights[name] for name in names[1::2]}, folder / "odd.safetensors")
    (folder / "config.json").write_text(json.dumps(small.network.config.to_json()))
    (folder / "tokenizer.model").write_bytes(TOKENIZERS[small.name])
    return folder


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return shutil.copytree(saved, tmp_path / "mine")


def some_frames(family: Family) -> torch.Tensor:
    assert family.inputs is not None
    size, num_crops = family.inputs.pixels.size, family.inputs.pixels.crops
    num_pictures = max(8, family.inputs.min_frames) * num_crops
    return torch.randn(1, num_pictures, 3, size, size, generator=torch.Generator().manual_seed(1))


def computed(family: Family) -> torch.Tensor:
    """The features of some frames; the logits of a few tokens, of a model that sees no videos."""
    if family.inputs is not None:
        return family.encode(some_frames(family))["video"]
    with torch.no_grad():
        logits: torch.Tensor = family.language_model(torch.tensor([[1, 40, 50]])).logits
        return logits


def question_to(family: Family) -> Conversation:
    return asked("Hello?", num_clips=0 if family.inputs is None else 1)


def test_loading_the_small_model_is_repeatable_and_does_not_change_random_state(small: Family) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    again = load_family(small.name)
    assert torch.equal(torch.rand(3), expected)
    assert again.checkpoint_digest == small.checkpoint_digest
    assert torch.equal(computed(again), computed(small))


def test_the_small_model_has_a_tokenizer_of_its_own_and_room_for_a_video(small: Family) -> None:
    assert small.network.config.decoder.vocab_size == small.tokenizer.vocab_size
    assert count_prompt_tokens(small, question_to(small)) < small.max_model_len
    assert small.num_parameters == sum(parameter.numel() for parameter in small.network.parameters())


def test_features_differ_between_videos_and_orders_of_frames(seeing: Family) -> None:
    small, frames = seeing, some_frames(seeing)
    features = small.encode(frames)["video"]
    assert features.shape == (1, *small.parts[0].shape)
    assert not features.requires_grad and bool(features.isfinite().all())
    assert (features - small.encode(frames.flip(1))["video"]).abs().max() > 1e-3
    assert (features - small.encode(-frames)["video"]).abs().max() > 1e-2
    hidden = small.language_model.config.hidden_size
    assert small.project("video", features[0].half()).shape == (small.num_rows("video"), hidden)


def test_half_precision_changes_features_by_its_rounding_alone(seeing: Family) -> None:
    small, frames = seeing, some_frames(seeing)
    halved = load_family(small.name, dtype=torch.bfloat16)
    assert halved.dtype == halved.encode(frames)["video"].dtype == torch.bfloat16
    assert halved.checkpoint_digest == small.checkpoint_digest
    exact = small.encode(frames)["video"]
    assert (halved.encode(frames)["video"] - exact).abs().mean() < 0.05 * exact.abs().mean()
    assert halved.language_model.model.rotary_emb.inv_freq.dtype == torch.float32


def test_without_a_dtype_the_default_is_used(small: Family) -> None:
    assert small.dtype == default_dtype("cpu")


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("kind", ["int8", "int4"])
def test_a_quantised_model_differs_in_its_logits_only(small: Family, kind: Quantization) -> None:
    pytest.importorskip(LIBRARIES[kind])
    packed = load_family(small.name, quantization=kind)
    assert packed.checkpoint_digest == small.checkpoint_digest
    assert packed.num_parameters == small.num_parameters
    if small.inputs is not None:
        features = computed(small)
        assert torch.equal(computed(packed), features)
        assert torch.equal(packed.project("video", features[0]), small.project("video", features[0]))
    ids = torch.tensor([[1, 40, 50]])
    with torch.no_grad():
        assert not torch.equal(packed.language_model(ids).logits, small.language_model(ids).logits)


def test_a_checkpoint_folder_gives_the_model_that_was_saved(saved: Path, small: Family) -> None:
    loaded = load_family(small.name, checkpoint=saved)
    assert loaded.checkpoint_digest == small.checkpoint_digest
    assert loaded.default_sampling == family_module(small.name).PUBLISHED_SAMPLING
    # Not to the last bit: the alignment of a matrix in its file decides the order of additions.
    torch.testing.assert_close(computed(loaded), computed(small))
    assert loaded.tokenize(question_to(small)) == small.tokenize(question_to(small))


def test_models_that_differ_in_their_language_models_alone_share_features(folder: Path, small: Family) -> None:
    def retouch(name: str) -> Family:
        for path in folder.glob("*.safetensors"):
            tensors = load_file(path)
            if name in tensors:
                save_file(tensors | {name: tensors[name] + 0.5}, path)
        return load_family(small.name, checkpoint=folder)

    names = [name for name, _ in small.network.named_parameters() if name in read_folder(folder)]
    of_encoder = [name for name in names if small.network.serves(name, "encode")]
    of_speaker = [name for name in names if small.network.serves(name, "generate")]
    before = load_family(small.name, checkpoint=folder)
    other = retouch(of_speaker[0])
    assert other.checkpoint_digest != before.checkpoint_digest
    assert other.encoder_digest == before.encoder_digest
    assert bool(of_encoder) == bool(small.parts)
    if of_encoder:
        assert retouch(of_encoder[0]).encoder_digest != before.encoder_digest


def test_a_checkpoint_can_set_the_default_sampling(folder: Path, small: Family) -> None:
    path = folder / "generation_config.json"
    path.write_text('{"do_sample": true, "temperature": 0.7, "top_p": 0.8, "max_new_tokens": 99, "eos_token_id": 2}')
    loaded = load_family(small.name, checkpoint=folder)
    top_k = family_module(small.name).PUBLISHED_SAMPLING.top_k
    assert loaded.default_sampling == SamplingParams(temperature=0.7, top_k=top_k, top_p=0.8, max_tokens=99)
    path.write_text('{"do_sample": false, "max_new_tokens": 9}')
    loaded = load_family(small.name, checkpoint=folder)
    assert loaded.default_sampling == SamplingParams(temperature=0.0, max_tokens=9)


@pytest.mark.parametrize(
    ("name", "content", "error"),
    [
        ("config.json", None, WeightsError),
        ("config.json", b"[]", WeightsError),
        ("config.json", b"{", WeightsError),
        ("config.json", b'{"vision": {}}', WeightsError),
        ("odd.safetensors", None, WeightsError),
        ("odd.safetensors", b"", WeightsError),
        ("tokenizer.model", None, TokenizerError),
        ("tokenizer.model", model_file(llama_like([f"a{number}" for number in range(900)])), WeightsError),
        ("generation_config.json", b"[]", WeightsError),
        ("generation_config.json", b'{"do_sample": true, "temperature": -1}', WeightsError),
    ],
)
def test_a_damaged_checkpoint_folder_is_refused(
    folder: Path, small: Family, name: str, content: bytes | None, error: type[ValueError]
) -> None:
    (folder / name).unlink(missing_ok=True)
    if content is not None:
        (folder / name).write_bytes(content)
    with pytest.raises(error):
        load_family(small.name, checkpoint=folder)


def test_an_unknown_size_is_refused(folder: Path, small: Family) -> None:
    sizes = json.loads((folder / "config.json").read_bytes())
    (folder / "config.json").write_text(json.dumps(sizes | {"depht": 3}))
    with pytest.raises(WeightsError, match="depht"):
        load_family(small.name, checkpoint=folder)


def test_a_tensor_that_two_files_hold_is_refused(folder: Path, small: Family) -> None:
    shutil.copy(folder / "even.safetensors", folder / "more.safetensors")
    with pytest.raises(WeightsError, match=r"more\.safetensors repeats"):
        load_family(small.name, checkpoint=folder)


def num_loaded(family: Family) -> int:
    """Values in the parameters that take memory."""
    return sum(parameter.numel() for parameter in family.network.parameters() if not parameter.is_meta)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_two_roles_compute_what_one_model_does_and_load_each_weight_once(
    seeing: Family, saved: Path, dtype: torch.dtype
) -> None:
    small = seeing
    whole = load_family(small.name, checkpoint=saved, dtype=dtype)
    encoder = load_family(small.name, checkpoint=saved, dtype=dtype, role="encode")
    speaker = load_family(small.name, checkpoint=saved, dtype=dtype, role="generate")
    for part in (encoder, speaker):
        assert (part.dtype, part.num_parameters) == (whole.dtype, whole.num_parameters)
        assert part.encoder_digest == whole.encoder_digest, "features of any process have the same key"
        assert (part.parts, part.max_model_len) == (whole.parts, whole.max_model_len)
    assert num_loaded(encoder) + num_loaded(speaker) == num_loaded(whole)
    assert min(num_loaded(encoder), num_loaded(speaker)) > 0
    assert all(parameter.is_meta for parameter in encoder.language_model.parameters())

    frames = some_frames(small)
    features = encoder.encode(frames)["video"]
    assert torch.equal(features, whole.encode(frames)["video"])
    assert torch.equal(speaker.project("video", features[0]), whole.project("video", features[0]))
    tokens = torch.tensor([[1, 5, 9]])
    assert torch.equal(speaker.language_model(tokens).logits, whole.language_model(tokens).logits)


@pytest.mark.parametrize("role", ["encode", "generate"])
def test_an_incomplete_checkpoint_is_refused_for_every_role(small: Family, folder: Path, role: Role) -> None:
    path = folder / "even.safetensors"
    weights = load_file(path)
    names = [name for name in weights if small.inputs is None or not small.network.serves(name, role)]
    save_file({name: tensor for name, tensor in weights.items() if name != names[-1]}, path)
    with pytest.raises(WeightsError, match="parameters that no key covers"):
        load_family(small.name, checkpoint=folder, role=role)

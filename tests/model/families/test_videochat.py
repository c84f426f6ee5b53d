"""VideoChat's prompt, and the tiny model as anyone loads it."""

import json
import shutil
import time
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from model.conversation import Clip, Conversation, Turn, VideoSlot
from model.engine.sampling_params import SamplingParams
from model.families import load_family
from model.families.videochat import DEFAULT_CHECKPOINT, PUBLISHED_SAMPLING, VideoChatTemplate, neutralise
from model.family import Family
from model.networks.videochat import VideoChatConfig, VideoChatNetwork
from model.tokenizer import Tokenizer, TokenizerError
from model.weights import WeightsError, read_safetensors
from tests.model.sentencepiece_files import llama_like, model_file

TINY = VideoChatConfig.from_json(json.loads((DEFAULT_CHECKPOINT / "config.json").read_bytes()))
MARKUP = ("###", "<Video>", "</Video>", "<VideoHere>", "<Image>", "</Image>", "<ImageHere>", "<s>", "</s>", "<unk>")
# LLaMA's own two ways to write a separator, `▁###` and `##` with `#`, among a few words.
LLAMA_LIKE = Tokenizer(llama_like(["##", "▁##", "▁###", "###", "Human", "Assistant"]))

hostile = st.lists(st.one_of(st.sampled_from((*MARKUP, "#", "##", "<", ">", " ", "\n")), st.text(max_size=3))).map(
    "".join
)


@pytest.fixture(scope="module")
def tiny() -> Family:
    return load_family("videochat")


def asked(*texts: str, system: str = "", num_clips: int = 1) -> Conversation:
    """Question, answer, question … about clips of two frames."""
    roles = ("user", "assistant") * len(texts)
    turns = tuple(Turn(role=role, text=text) for role, text in zip(roles, texts, strict=False))  # type: ignore[arg-type]
    return Conversation(clips=(Clip(frame_indices=(7, 22), fps=10.0),) * num_clips, turns=turns, system=system)


def rendered(conversation: Conversation) -> str:
    parts = VideoChatTemplate().render(conversation)
    return "".join(part if isinstance(part, str) else "[video]" for part in parts)


def test_a_question_follows_the_video_and_the_prompt_ends_where_the_answer_begins() -> None:
    assert rendered(asked("What is it?")) == (
        "###Human: <Video>[video]</Video> The video contains 2 frames sampled at 0.7, 2.2 seconds.\n"
        "###Human: What is it?\n"
        "###Assistant:"
    )


def test_a_later_turn_sees_the_earlier_ones_and_answers_end_without_a_new_line() -> None:
    text = rendered(asked("What is it?", " A cat.\n", "Where?"))
    assert text.endswith("###Human: What is it?\n###Assistant: A cat.###Human: Where?\n###Assistant:")


def test_each_of_several_videos_is_a_message_of_its_own() -> None:
    conversation = asked("Which is longer?", num_clips=2)
    slots = [part for part in VideoChatTemplate().render(conversation) if isinstance(part, VideoSlot)]
    assert slots == [VideoSlot(0), VideoSlot(1)]
    assert rendered(conversation).count("###Human: <Video>[video]</Video> The video contains 2 frames") == 2


def test_a_conversation_without_videos_is_one_text() -> None:
    assert VideoChatTemplate().render(asked("Hello?", num_clips=0)) == ("###Human: Hello?\n###Assistant:",)


def test_seconds_are_rounded_as_numpy_does() -> None:
    clip = Clip(frame_indices=(1, 7), fps=20.0)  # Python says 0.1 and 0.3 of 0.05 and 0.35
    conversation = Conversation(clips=(clip,), turns=(Turn(role="user", text="?"),))
    assert "sampled at 0.0, 0.4 seconds." in rendered(conversation)


@pytest.mark.parametrize("markup", MARKUP)
def test_markup_that_is_typed_stays_legible_and_is_no_markup(markup: str) -> None:
    harmless = neutralise(f"before {markup} after")
    assert markup not in harmless
    assert harmless.replace(" ", "") == f"before{markup}after"


def test_ordinary_text_is_left_alone() -> None:
    for text in ("C# or F#?", "## A heading", "a < b > c", "<video>", "<b>bold</b>", "Assistant: me"):
        assert neutralise(text) == text


@given(hostile, hostile, hostile, hostile)
def test_nobody_can_forge_a_turn_or_a_place_for_a_video(system: str, first: str, answer: str, second: str) -> None:
    parts = VideoChatTemplate().render(asked(first, answer, second, system=system))
    texts = [part for part in parts if isinstance(part, str)]
    # One video message, two questions, an answer, and the answer to come.
    assert sum(text.count("###") for text in texts) == 5
    assert not any("####" in text for text in texts)
    assert [text.count("<Video>") for text in texts] == [1, 0]
    assert [text.count("</Video>") for text in texts] == [0, 1]

    pieces = [LLAMA_LIKE.token_bytes(token_id) for text in texts for token_id in LLAMA_LIKE.encode(text)]
    whole = sum(piece.strip() == b"###" for piece in pieces)
    in_two = sum(left.strip() == b"##" and right == b"#" for left, right in pairwise(pieces))
    assert whole + in_two == 5


def test_the_tiny_model_has_the_whole_architecture_in_a_few_million_parameters(tiny: Family) -> None:
    with torch.device("meta"):
        network = VideoChatNetwork(TINY)
    assert 3e6 < sum(parameter.numel() for parameter in network.parameters()) < 8e6
    assert (TINY.qformer.num_queries, TINY.qformer.num_extra_queries) == (32, 64)
    assert TINY.vision.num_global_blocks > 0
    assert TINY.decoder.vocab_size == tiny.tokenizer.vocab_size
    assert (tiny.num_video_tokens, tiny.max_model_len) == (96, 2048)
    assert (tiny.frame_spec.count, tiny.frame_spec.rule, tiny.pixel_spec.size) == (8, "videochat", 64)


def test_the_tiny_model_loads_alike_every_time_and_leaves_the_caller_s_random_numbers_alone(tiny: Family) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    again = load_family("videochat")
    assert torch.equal(torch.rand(3), expected)
    assert again.checkpoint_digest == tiny.checkpoint_digest
    pixel_values = torch.randn(1, 8, 3, 64, 64)
    assert torch.equal(again.encode(pixel_values), tiny.encode(pixel_values))


def test_features_tell_videos_apart_and_the_order_of_their_frames(tiny: Family) -> None:
    pixel_values = torch.randn(1, 8, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    features = tiny.encode(pixel_values)
    assert features.shape == (1, *tiny.feature_shape)
    assert not features.requires_grad and bool(features.isfinite().all())
    assert (features - tiny.encode(pixel_values.flip(1))).abs().max() > 1e-3
    assert (features - tiny.encode(-pixel_values)).abs().max() > 1e-2
    assert tiny.project(features[0].half()).shape == (96, tiny.language_model.config.hidden_size)


def test_a_video_is_encoded_in_well_under_a_second(tiny: Family) -> None:
    pixel_values = torch.randn(1, 8, 3, 64, 64)
    tiny.encode(pixel_values)
    started = time.process_time()
    tiny.encode(pixel_values)
    assert time.process_time() - started < 1


def test_half_precision_changes_features_by_its_rounding_alone(tiny: Family) -> None:
    pixel_values = torch.randn(1, 8, 3, 64, 64)
    halved = load_family("videochat", dtype=torch.bfloat16)
    assert halved.dtype == halved.encode(pixel_values).dtype == torch.bfloat16
    assert halved.checkpoint_digest == tiny.checkpoint_digest
    exact = tiny.encode(pixel_values)
    assert (halved.encode(pixel_values) - exact).abs().mean() < 0.05 * exact.abs().mean()
    assert halved.language_model.model.rotary_emb.inv_freq.dtype == torch.float32


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint folder of tiny sizes, in two shards, that does not say how to sample."""
    folder = tmp_path_factory.mktemp("checkpoints") / "mine"
    folder.mkdir()
    weights = read_safetensors(DEFAULT_CHECKPOINT / "model.safetensors")
    names = sorted(weights)
    save_file({name: weights[name] for name in names[::2]}, folder / "even.safetensors")
    save_file({name: weights[name] for name in names[1::2]}, folder / "odd.safetensors")
    for name in ("config.json", "tokenizer.model"):
        shutil.copy(DEFAULT_CHECKPOINT / name, folder)
    return folder


def test_a_checkpoint_folder_gives_the_model_that_was_saved(saved: Path, tiny: Family) -> None:
    loaded = load_family("videochat", checkpoint=saved)
    assert loaded.checkpoint_digest == tiny.checkpoint_digest
    assert loaded.default_sampling == PUBLISHED_SAMPLING
    pixel_values = torch.randn(1, 8, 3, 64, 64)
    assert torch.equal(loaded.encode(pixel_values), tiny.encode(pixel_values))
    assert loaded.tokenize(asked("Hello?")) == tiny.tokenize(asked("Hello?"))


@pytest.mark.parametrize(
    ("name", "content", "error"),
    [
        ("config.json", None, WeightsError),
        ("config.json", b"[]", WeightsError),
        ("config.json", b"{", WeightsError),
        ("config.json", json.dumps(TINY.to_json() | {"num_heads": 3}).encode(), WeightsError),
        ("odd.safetensors", None, WeightsError),
        ("odd.safetensors", b"", WeightsError),
        ("tokenizer.model", None, TokenizerError),
        ("tokenizer.model", model_file(llama_like([f"a{number}" for number in range(900)])), WeightsError),
        ("generation_config.json", b"[]", WeightsError),
        ("generation_config.json", b'{"do_sample": true, "temperature": -1}', WeightsError),
    ],
)
def test_a_damaged_checkpoint_folder_is_refused(
    saved: Path, tmp_path: Path, name: str, content: bytes | None, error: type[ValueError]
) -> None:
    folder = tmp_path / "mine"
    shutil.copytree(saved, folder)
    (folder / name).unlink(missing_ok=True)
    if content is not None:
        (folder / name).write_bytes(content)
    with pytest.raises(error):
        load_family("videochat", checkpoint=folder)


def test_a_checkpoint_may_say_how_to_sample(saved: Path, tmp_path: Path, tiny: Family) -> None:
    folder = tmp_path / "mine"
    shutil.copytree(saved, folder)
    (folder / "generation_config.json").write_text(
        '{"do_sample": true, "temperature": 0.7, "top_p": 0.8, "max_new_tokens": 99, "eos_token_id": 2}'
    )
    loaded = load_family("videochat", checkpoint=folder)
    assert loaded.default_sampling == SamplingParams(temperature=0.7, top_k=50, top_p=0.8, max_tokens=99)
    assert tiny.default_sampling == SamplingParams(temperature=0.0, max_tokens=256)


def test_a_tensor_that_two_files_hold_is_refused(saved: Path, tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    shutil.copytree(saved, folder)
    shutil.copy(folder / "even.safetensors", folder / "more.safetensors")
    with pytest.raises(WeightsError, match=r"more\.safetensors repeats"):
        load_family("videochat", checkpoint=folder)

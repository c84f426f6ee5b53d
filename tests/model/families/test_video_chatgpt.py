"""Video-ChatGPT's prompt, its small model, and the folders that it is loaded from."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from model.conversation import Clip, Conversation, SpecialToken, Turn, VideoSlot
from model.engine.sampling_params import SamplingParams
from model.families import load_family
from model.families.video_chatgpt import (
    PUBLISHED_SAMPLING,
    SYSTEM,
    TINY,
    TINY_SEED,
    VideoChatGPTTemplate,
    neutralise,
    verify_stages,
)
from model.family import Family
from model.networks.video_chatgpt import VideoChatGPTNetwork
from model.tokenizer import TokenizerError, plain_tokenizer
from model.weights import WeightsError, seeded
from tests.model.sentencepiece_files import llama_like, model_file
from tests.published import golden

MARKUP = ("<s>", "</s>", "<unk>", "<video>", "<vid_patch>", "<vid_start>", "<vid_end>", "<im_start>", "USER:")
TOKENIZER = plain_tokenizer(added=TINY.added_tokens)

hostile = st.lists(
    st.one_of(st.sampled_from((*MARKUP, "ASSISTANT", "USER", ":", "<", ">", " ", "\n")), st.text(max_size=3))
).map("".join)


@pytest.fixture(scope="module")
def tiny() -> Family:
    return load_family("video-chatgpt")


def asked(*texts: str, system: str = "", num_clips: int = 1) -> Conversation:
    """Question, answer, question … about clips of two frames."""
    roles = ("user", "assistant") * len(texts)
    turns = tuple(Turn(role=role, text=text) for role, text in zip(roles, texts, strict=False))  # type: ignore[arg-type]
    return Conversation(clips=(Clip(frame_indices=(7, 22), fps=10.0),) * num_clips, turns=turns, system=system)


def rendered(conversation: Conversation) -> str:
    parts = VideoChatGPTTemplate().render(conversation)
    return "".join(
        part if isinstance(part, str) else part.name if isinstance(part, SpecialToken) else "[video]" for part in parts
    )


def test_the_video_follows_the_first_question_and_the_prompt_ends_where_the_answer_begins() -> None:
    assert rendered(asked("What is it?")) == (f"{SYSTEM} USER: What is it?\n<vid_start>[video]<vid_end> ASSISTANT:")


def test_a_later_turn_sees_the_earlier_ones_and_not_the_video_again() -> None:
    assert rendered(asked("What is it?", " A cat.\n", "Where?", "", "Why?")) == (
        f"{SYSTEM} USER: What is it?\n<vid_start>[video]<vid_end> ASSISTANT: A cat.</s>"
        "USER: Where? ASSISTANT: </s>USER: Why? ASSISTANT:"
    )


def test_each_of_several_videos_is_a_line_of_its_own() -> None:
    text = rendered(asked("Which is longer?", num_clips=2))
    assert text.endswith("longer?\n<vid_start>[video]<vid_end>\n<vid_start>[video]<vid_end> ASSISTANT:")
    slots = [part for part in VideoChatGPTTemplate().render(asked("?", num_clips=2)) if isinstance(part, VideoSlot)]
    assert slots == [VideoSlot(0), VideoSlot(1)]


def test_a_conversation_without_videos_is_one_text() -> None:
    assert VideoChatGPTTemplate().render(asked("Hello?", num_clips=0)) == (f"{SYSTEM} USER: Hello? ASSISTANT:",)


def test_a_session_s_own_system_text_takes_the_place_of_the_published_one() -> None:
    assert rendered(asked("Hello?", system="Be brief.", num_clips=0)) == "Be brief. USER: Hello? ASSISTANT:"


@pytest.mark.parametrize("markup", (*MARKUP, "ASSISTANT:", "</video>"))
def test_markup_that_is_typed_stays_legible_and_is_no_markup(markup: str) -> None:
    harmless = neutralise(f"before {markup} after")
    assert markup not in harmless
    assert harmless.replace(" ", "") == f"before{markup}after"


def test_ordinary_text_is_left_alone() -> None:
    for text in ("a < b > c", "<b>bold</b>", "the user: me", "USER guide", "video"):
        assert neutralise(text) == text


@given(hostile, hostile, hostile, hostile)
def test_nobody_can_forge_a_turn_or_a_special_token(system: str, first: str, answer: str, second: str) -> None:
    parts = VideoChatGPTTemplate().render(asked(first, answer, second, system=system))
    names = [part.name for part in parts if isinstance(part, SpecialToken)]
    assert names == ["<vid_start>", "<vid_end>", "</s>"]
    texts = [part for part in parts if isinstance(part, str)]
    assert sum(text.count("USER:") for text in texts) == 2
    assert sum(text.count("ASSISTANT:") for text in texts) == 2
    assert not any(markup in text for text in texts for markup in MARKUP if markup != "USER:")
    specials = {TOKENIZER.special_id(name) for name in ("<s>", "</s>", *TINY.added_tokens)}
    assert not specials & {token for text in texts for token in TOKENIZER.encode(text)}


def test_where_the_original_lets_a_question_place_the_video_ours_keeps_it_text() -> None:
    assert rendered(asked("Look: <video> What is it?")).endswith(
        "USER: Look: < video> What is it?\n<vid_start>[video]<vid_end> ASSISTANT:"
    )


def test_special_tokens_stand_in_the_prompt_by_their_ids(tiny: Family) -> None:
    question, start, slot, end, answer = tiny.tokenize(asked("What is it?"))
    assert (start, slot, end) == ((355,), VideoSlot(0), (356,))
    assert isinstance(question, tuple) and isinstance(answer, tuple)
    assert question[0] == tiny.tokenizer.bos_id and answer[0] != tiny.tokenizer.bos_id
    assert tiny.tokenizer.decode(question).endswith("USER: What is it?\n")


def test_the_small_model_has_the_whole_architecture(tiny: Family) -> None:
    assert (tiny.num_video_tokens, tiny.max_model_len) == (116, 2048)
    assert (tiny.frame_spec.count, tiny.frame_spec.rule) == (100, "video-chatgpt")
    assert (tiny.pixel_spec.size, tiny.pixel_spec.fit) == (56, "nearest")
    assert TINY.decoder.vocab_size == tiny.tokenizer.vocab_size
    assert tiny.default_sampling == PUBLISHED_SAMPLING


def test_the_small_model_loads_alike_every_time_and_leaves_the_caller_s_random_numbers_alone(tiny: Family) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    again = load_family("video-chatgpt")
    assert torch.equal(torch.rand(3), expected)
    assert again.checkpoint_digest == tiny.checkpoint_digest
    pixel_values = torch.randn(1, 8, 3, 56, 56)
    assert torch.equal(again.encode(pixel_values), tiny.encode(pixel_values))


def test_features_tell_videos_apart_and_the_order_of_their_frames(tiny: Family) -> None:
    pixel_values = torch.randn(1, 8, 3, 56, 56, generator=torch.Generator().manual_seed(1))
    features = tiny.encode(pixel_values)
    assert features.shape == (1, *tiny.feature_shape)
    assert not features.requires_grad and bool(features.isfinite().all())
    assert (features - tiny.encode(pixel_values.flip(1))).abs().max() > 1e-2
    assert (features - tiny.encode(-pixel_values)).abs().max() > 1e-2
    assert tiny.project(features[0].half()).shape == (116, tiny.language_model.config.hidden_size)


def test_half_precision_changes_features_by_its_rounding_alone(tiny: Family) -> None:
    pixel_values = torch.randn(1, 8, 3, 56, 56)
    halved = load_family("video-chatgpt", dtype=torch.bfloat16)
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
    weights = seeded(VideoChatGPTNetwork(TINY), seed=TINY_SEED)
    names = sorted(weights)
    save_file({name: weights[name] for name in names[::2]}, folder / "even.safetensors")
    save_file({name: weights[name] for name in names[1::2]}, folder / "odd.safetensors")
    (folder / "config.json").write_text(json.dumps(TINY.to_json()))
    (folder / "tokenizer.model").write_bytes(model_file(llama_like()))
    return folder


def test_a_checkpoint_folder_gives_the_model_that_was_saved(saved: Path, tiny: Family) -> None:
    loaded = load_family("video-chatgpt", checkpoint=saved)
    assert loaded.checkpoint_digest == tiny.checkpoint_digest
    assert loaded.default_sampling == PUBLISHED_SAMPLING
    pixel_values = torch.randn(1, 8, 3, 56, 56)
    assert torch.equal(loaded.encode(pixel_values), tiny.encode(pixel_values))
    assert loaded.tokenize(asked("Hello?")) == tiny.tokenize(asked("Hello?"))


def test_a_checkpoint_may_say_how_to_sample(saved: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(saved, tmp_path / "mine")
    (folder / "generation_config.json").write_text('{"do_sample": false, "max_new_tokens": 99}')
    loaded = load_family("video-chatgpt", checkpoint=folder)
    assert loaded.default_sampling == SamplingParams(temperature=0.0, max_tokens=99)


@pytest.mark.parametrize(
    ("name", "content", "error"),
    [
        ("config.json", None, WeightsError),
        ("config.json", b"[]", WeightsError),
        ("config.json", b"{", WeightsError),
        ("config.json", json.dumps(TINY.to_json() | {"num_frames": 8}).encode(), WeightsError),
        ("config.json", json.dumps(TINY.to_json() | {"added_tokens": ["<vid_start>"]}).encode(), TokenizerError),
        ("config.json", b'{"clip": {}, "llm": []}', WeightsError),
        ("odd.safetensors", None, WeightsError),
        ("odd.safetensors", b"", WeightsError),
        ("tokenizer.model", None, TokenizerError),
        ("tokenizer.model", model_file(llama_like([f"a{number}" for number in range(900)])), WeightsError),
        ("generation_config.json", b"[]", WeightsError),
    ],
)
def test_a_damaged_checkpoint_folder_is_refused(
    saved: Path, tmp_path: Path, name: str, content: bytes | None, error: type[ValueError]
) -> None:
    folder = shutil.copytree(saved, tmp_path / "mine")
    (folder / name).unlink(missing_ok=True)
    if content is not None:
        (folder / name).write_bytes(content)
    with pytest.raises(error):
        load_family("video-chatgpt", checkpoint=folder)


@pytest.fixture
def reference(tmp_path: Path) -> Path:
    """A copy of a folder of reference tensors, free to be damaged."""
    folder = tmp_path / "reference"
    folder.mkdir()
    for name in ("config.json", "weights.safetensors", "inputs.safetensors"):
        shutil.copyfile(golden("video-chatgpt-open") / name, folder / name)
    return folder


def test_stages_are_computed_where_nothing_says_what_they_should_be(reference: Path) -> None:
    stages = {
        stage.name: stage.tensor
        for stage in verify_stages(reference, device="cpu", dtype=torch.bfloat16, quantization=None)
    }
    assert stages["video_tokens"].dtype == torch.bfloat16
    assert len(stages["greedy_ids"]) == 16


def test_reference_tensors_without_a_place_for_the_video_are_refused(reference: Path) -> None:
    pixel_values = torch.zeros(2, 3, 42, 42)
    for input_ids, what in (([1, 5], "no place for a video"), ([1, 260, 259, 261], "of this many tokens")):
        save_file(
            {"pixel_values": pixel_values, "input_ids": torch.tensor([input_ids])}, reference / "inputs.safetensors"
        )
        with pytest.raises(WeightsError, match=what):
            list(verify_stages(reference, device="cpu", dtype=torch.float32, quantization=None))
    save_file({"pixel_values": pixel_values}, reference / "inputs.safetensors")
    with pytest.raises(WeightsError, match="lacks input_ids"):
        list(verify_stages(reference, device="cpu", dtype=torch.float32, quantization=None))

"""Video-ChatGPT's prompt, its small model, and folders of its reference tensors."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from model.families import load_family
from model.families.video_chatgpt.family import (
    PUBLISHED_SAMPLING,
    SYSTEM,
    TINY,
    VideoChatGPTTemplate,
    verify_stages,
)
from model.family import Family
from model.text.conversation import Slot, SpecialToken
from model.text.separated import neutralise
from model.text.tokenizer import TokenizerError, plain_tokenizer
from model.verification.stage import Stage
from model.video.inputs import InputSpec
from model.video.pixels import PixelSpec
from model.video.spec import FrameSpec
from model.weights import WeightsError
from tests.model.families.conversations import asked, rendered
from tests.published import golden

MARKUP = ("<s>", "</s>", "<unk>", "<video>", "<vid_patch>", "<vid_start>", "<vid_end>", "<im_start>", "USER:")
TOKENIZER = plain_tokenizer(added=TINY.added_tokens)

hostile = st.lists(
    st.one_of(st.sampled_from((*MARKUP, "ASSISTANT", "USER", ":", "<", ">", " ", "\n")), st.text(max_size=3))
).map("".join)


@pytest.fixture(scope="module")
def tiny() -> Family:
    return load_family("video-chatgpt")


def test_the_video_follows_the_first_question_and_the_answer_follows_the_prompt() -> None:
    assert rendered(VideoChatGPTTemplate(), asked("What is it?")) == (
        f"{SYSTEM} USER: What is it?\n<vid_start>[video]<vid_end> ASSISTANT:"
    )


def test_a_later_prompt_contains_the_earlier_turns_and_the_video_once() -> None:
    assert rendered(VideoChatGPTTemplate(), asked("What is it?", " A cat.\n", "Where?", "", "Why?")) == (
        f"{SYSTEM} USER: What is it?\n<vid_start>[video]<vid_end> ASSISTANT: A cat.</s>"
        "USER: Where? ASSISTANT: </s>USER: Why? ASSISTANT:"
    )


def test_each_of_several_videos_is_a_line_of_its_own() -> None:
    text = rendered(VideoChatGPTTemplate(), asked("Which is longer?", num_clips=2))
    assert text.endswith("longer?\n<vid_start>[video]<vid_end>\n<vid_start>[video]<vid_end> ASSISTANT:")
    slots = [part for part in VideoChatGPTTemplate().render(asked("?", num_clips=2)) if isinstance(part, Slot)]
    assert slots == [Slot(0), Slot(1)]


def test_a_conversation_without_videos_is_one_text() -> None:
    assert VideoChatGPTTemplate().render(asked("Hello?", num_clips=0)) == (f"{SYSTEM} USER: Hello? ASSISTANT:",)


def test_a_session_s_system_text_replaces_the_published_one() -> None:
    assert (
        rendered(VideoChatGPTTemplate(), asked("Hello?", system="Be brief.", num_clips=0))
        == "Be brief. USER: Hello? ASSISTANT:"
    )


@pytest.mark.parametrize("markup", (*MARKUP, "ASSISTANT:", "</video>"))
def test_typed_markup_stays_legible_but_is_not_markup(markup: str) -> None:
    harmless = neutralise(f"before {markup} after")
    assert markup not in harmless
    assert harmless.replace(" ", "") == f"before{markup}after"


def test_ordinary_text_is_not_changed() -> None:
    for text in ("a < b > c", "<b>bold</b>", "the user: me", "USER guide", "video"):
        assert neutralise(text) == text


@given(hostile, hostile, hostile, hostile)
def test_no_text_can_imitate_a_turn_or_a_special_token(system: str, first: str, answer: str, second: str) -> None:
    parts = VideoChatGPTTemplate().render(asked(first, answer, second, system=system))
    names = [part.name for part in parts if isinstance(part, SpecialToken)]
    assert names == ["<vid_start>", "<vid_end>", "</s>"]
    texts = [part for part in parts if isinstance(part, str)]
    assert sum(text.count("USER:") for text in texts) == 2
    assert sum(text.count("ASSISTANT:") for text in texts) == 2
    assert not any(markup in text for text in texts for markup in MARKUP if markup != "USER:")
    specials = {TOKENIZER.special_id(name) for name in ("<s>", "</s>", *TINY.added_tokens)}
    assert not specials & {token for text in texts for token in TOKENIZER.encode(text)}


def test_a_video_marker_in_a_question_stays_text() -> None:
    assert rendered(VideoChatGPTTemplate(), asked("Look: <video> What is it?")).endswith(
        "USER: Look: < video> What is it?\n<vid_start>[video]<vid_end> ASSISTANT:"
    )


def test_special_tokens_of_the_prompt_become_their_ids(tiny: Family) -> None:
    question, start, slot, end, answer = tiny.tokenize(asked("What is it?"))
    assert (start, slot, end) == ((355,), Slot(0), (356,))
    assert isinstance(question, tuple) and isinstance(answer, tuple)
    assert question[0] == tiny.tokenizer.bos_id and answer[0] != tiny.tokenizer.bos_id
    assert tiny.tokenizer.decode(question).endswith("USER: What is it?\n")


def test_the_small_model_has_the_whole_architecture(tiny: Family) -> None:
    assert tiny.num_video_tokens == 116
    frames, pixels = FrameSpec(count=100, rule="video-chatgpt"), PixelSpec(size=56, fit="nearest")
    assert tiny.inputs == InputSpec(frames=frames, pixels=pixels)
    assert tiny.default_sampling == PUBLISHED_SAMPLING


@pytest.fixture
def reference(tmp_path: Path) -> Path:
    """A copy of a folder of reference tensors, which a test may damage."""
    folder = tmp_path / "reference"
    folder.mkdir()
    for name in ("config.json", "weights.safetensors", "inputs.safetensors"):
        shutil.copyfile(golden("video-chatgpt-open") / name, folder / name)
    return folder


def stages(folder: Path, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    findings = verify_stages(load_family("video-chatgpt", checkpoint=folder, dtype=dtype), folder)
    return {finding.name: finding.tensor for finding in findings if isinstance(finding, Stage)}


def test_stages_are_computed_without_expected_values(reference: Path) -> None:
    computed = stages(reference, torch.bfloat16)
    assert computed["video_tokens"].dtype == torch.bfloat16
    assert len(computed["greedy_ids"]) == 16


@pytest.mark.parametrize(
    ("inputs", "said"),
    [
        ({"input_ids": torch.tensor([[1, 5]])}, "no slot for a video"),
        ({"input_ids": torch.tensor([[1, 260, 259, 261]])}, "no slot for a video"),
        ({}, "lacks input_ids"),
    ],
)
def test_reference_tensors_without_a_slot_for_the_video_are_refused(
    reference: Path, inputs: Mapping[str, torch.Tensor], said: str
) -> None:
    save_file({"pixel_values": torch.zeros(2, 3, 42, 42), **inputs}, reference / "inputs.safetensors")
    with pytest.raises(WeightsError, match=said):
        stages(reference)


@pytest.mark.parametrize(
    ("sizes", "error"),
    [
        ({"clip": {}}, WeightsError),
        ({"llm": []}, WeightsError),
        ({"special_token_ids": []}, WeightsError),
        ({"special_token_ids": {"<vid_start>": 259}}, TokenizerError),
        ({"special_token_ids": {"<vid_patch>": 260, "<vid_start>": 261, "<vid_end>": 262}}, WeightsError),
    ],
)
def test_reference_tensors_of_impossible_sizes_are_refused(
    reference: Path, sizes: dict[str, object], error: type[ValueError]
) -> None:
    path = reference / "config.json"
    path.write_text(json.dumps(json.loads(path.read_bytes()) | sizes))
    with pytest.raises(error):
        stages(reference)

"""VideoChat's prompt and its small model."""

import json
import time
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from model.engine.sampling_params import SamplingParams
from model.families import load_family
from model.families.videochat.family import DEFAULT_CHECKPOINT, VideoChatTemplate, neutralise
from model.families.videochat.network import VideoChatConfig, VideoChatNetwork
from model.family import Family
from model.text.conversation import Clip, Conversation, Slot, Turn
from model.text.tokenizer import Tokenizer
from model.video.inputs import InputSpec
from model.video.pixels import PixelSpec
from model.video.spec import FrameSpec
from tests.model.families.conversations import asked, rendered
from tests.model.text.sentencepiece_files import llama_like

TINY = VideoChatConfig.from_json(json.loads((DEFAULT_CHECKPOINT / "config.json").read_bytes()))
MARKUP = ("###", "<Video>", "</Video>", "<VideoHere>", "<Image>", "</Image>", "<ImageHere>", "<s>", "</s>", "<unk>")
# LLaMA's two tokenizations of a separator, `▁###` and `##` with `#`, and a few words.
LLAMA_LIKE = Tokenizer(llama_like(["##", "▁##", "▁###", "###", "Human", "Assistant"]))

hostile = st.lists(st.one_of(st.sampled_from((*MARKUP, "#", "##", "<", ">", " ", "\n")), st.text(max_size=3))).map(
    "".join
)


@pytest.fixture(scope="module")
def tiny() -> Family:
    return load_family("videochat")


def test_a_question_follows_the_video_and_the_answer_follows_the_prompt() -> None:
    assert rendered(VideoChatTemplate(), asked("What is it?")) == (
        "###Human: <Video>[video]</Video> The video contains 2 frames sampled at 0.7, 2.2 seconds.\n"
        "###Human: What is it?\n"
        "###Assistant:"
    )


def test_a_later_prompt_contains_the_earlier_turns_and_answers_end_without_a_newline() -> None:
    text = rendered(VideoChatTemplate(), asked("What is it?", " A cat.\n", "Where?"))
    assert text.endswith("###Human: What is it?\n###Assistant: A cat.###Human: Where?\n###Assistant:")


def test_each_of_several_videos_is_a_message_of_its_own() -> None:
    conversation = asked("Which is longer?", num_clips=2)
    slots = [part for part in VideoChatTemplate().render(conversation) if isinstance(part, Slot)]
    assert slots == [Slot(0), Slot(1)]
    assert (
        rendered(VideoChatTemplate(), conversation).count(
            "###Human: <Video>[video]</Video> The video contains 2 frames"
        )
        == 2
    )


def test_a_conversation_without_videos_is_one_text() -> None:
    assert VideoChatTemplate().render(asked("Hello?", num_clips=0)) == ("###Human: Hello?\n###Assistant:",)


def test_seconds_are_rounded_as_numpy_does() -> None:
    clip = Clip(frame_indices=(1, 7), fps=20.0)  # Python says 0.1 and 0.3 of 0.05 and 0.35
    conversation = Conversation(clips=(clip,), turns=(Turn(role="user", text="?"),))
    assert "sampled at 0.0, 0.4 seconds." in rendered(VideoChatTemplate(), conversation)


@pytest.mark.parametrize("markup", MARKUP)
def test_typed_markup_stays_legible_but_is_not_markup(markup: str) -> None:
    harmless = neutralise(f"before {markup} after")
    assert markup not in harmless
    assert harmless.replace(" ", "") == f"before{markup}after"


def test_ordinary_text_is_not_changed() -> None:
    for text in ("C# or F#?", "## A heading", "a < b > c", "<video>", "<b>bold</b>", "Assistant: me"):
        assert neutralise(text) == text


@given(hostile, hostile, hostile, hostile)
def test_no_text_can_imitate_a_turn_or_a_video_slot(system: str, first: str, answer: str, second: str) -> None:
    parts = VideoChatTemplate().render(asked(first, answer, second, system=system))
    texts = [part for part in parts if isinstance(part, str)]
    # One video message, two questions, an answer, and the start of the next answer.
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
    assert tiny.num_video_tokens == 96
    assert tiny.default_sampling == SamplingParams(temperature=0.0, max_tokens=256)
    assert tiny.inputs == InputSpec(frames=FrameSpec(count=8, rule="videochat"), pixels=PixelSpec(size=64))


def test_a_video_is_encoded_in_well_under_a_second(tiny: Family) -> None:
    """Measured on one thread, because several threads slow each other down on a busy machine."""
    pixel_values = torch.randn(1, 8, 3, 64, 64)
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        tiny.encode(pixel_values)
        started = time.process_time()
        tiny.encode(pixel_values)
        assert time.process_time() - started < 1
    finally:
        torch.set_num_threads(num_threads)

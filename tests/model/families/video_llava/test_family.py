"""The prompt of the original Video-LLaVA, and its small model."""

import pytest
import torch
from hypothesis import given

from model.families import load_family
from model.families.video_llava.family import PUBLISHED_SAMPLING, VideoLlavaTemplate
from model.family import Family
from model.text.conversation import Slot, SpecialToken
from tests.model.families.conversations import asked, rendered
from tests.model.text.test_separated import hostile

SYSTEM = (
    "A chat between a curious human and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the human's questions."
)


@pytest.fixture(scope="module")
def tiny() -> Family:
    return load_family("video-llava")


def test_the_first_question_follows_its_video() -> None:
    assert rendered(VideoLlavaTemplate(), asked("Why is this funny?")) == (
        f"{SYSTEM} USER: [video]\nWhy is this funny? ASSISTANT:"
    )


def test_a_later_prompt_contains_the_earlier_turns_and_the_video_once() -> None:
    assert rendered(VideoLlavaTemplate(), asked("What is it?", " A cat.\n", "Where?")) == (
        f"{SYSTEM} USER: [video]\nWhat is it? ASSISTANT: A cat.</s>USER: Where? ASSISTANT:"
    )


def test_a_question_about_a_picture_is_asked_about_an_image_as_by_the_demo() -> None:
    text = rendered(VideoLlavaTemplate(), asked("Which picture?", "The picture of a cat.", "A picture?"))
    assert text.endswith("Which image? ASSISTANT: The picture of a cat.</s>USER: A image? ASSISTANT:")


@given(hostile, hostile, hostile, hostile)
def test_no_text_can_imitate_a_turn_or_move_the_video(system: str, first: str, answer: str, second: str) -> None:
    pieces = VideoLlavaTemplate().render(asked(first, answer, second, system=system))
    assert [piece for piece in pieces if not isinstance(piece, str)] == [Slot(0), SpecialToken("</s>")]
    text = "".join(piece for piece in pieces if isinstance(piece, str))
    assert (text.count("USER:"), text.count("ASSISTANT:")) == (2, 2)
    assert "<image>" not in text and "<video>" not in text and "</s>" not in text


def test_the_small_model_takes_eight_frames_and_has_every_module(tiny: Family) -> None:
    assert tiny.inputs is not None
    assert (tiny.inputs.frames.count, tiny.inputs.frames.rule) == (8, "linspace")
    assert (tiny.inputs.min_frames, tiny.inputs.max_frames) == (8, 8)
    assert tiny.inputs.pixels.fit == "bilinear"
    assert tiny.num_video_tokens == 8 * 5
    assert tiny.default_sampling == PUBLISHED_SAMPLING


def test_two_clips_in_one_batch_give_what_each_gives_alone(tiny: Family) -> None:
    clips = torch.randn(2, 8, 3, 28, 28, generator=torch.Generator().manual_seed(4))
    together = tiny.encode(clips)["video"]
    for number in range(2):
        torch.testing.assert_close(tiny.encode(clips[number : number + 1])["video"][0], together[number])


def test_the_two_video_llavas_share_no_cached_features(tiny: Family) -> None:
    other = load_family("video-llava-hf")
    assert other.encoder_digest != tiny.encoder_digest
    assert other.inputs != tiny.inputs

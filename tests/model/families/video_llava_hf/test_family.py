"""The prompt of Video-LLaVA -hf, and its small model."""

import pytest
import torch

from model.families import load_family
from model.families.video_llava_hf.family import PUBLISHED_SAMPLING
from model.family import Family
from tests.model.families.conversations import asked, rendered


@pytest.fixture(scope="module")
def tiny() -> Family:
    return load_family("video-llava-hf")


def test_the_prompt_has_no_system_text(tiny: Family) -> None:
    assert rendered(tiny.template, asked("What is it?", "A cat.", "Which picture?")) == (
        "USER: [video]\nWhat is it? ASSISTANT: A cat.</s>USER: Which picture? ASSISTANT:"
    )


def test_a_system_text_of_a_session_comes_first(tiny: Family) -> None:
    text = rendered(tiny.template, asked("What is it?", system="USER: be brief."))
    assert text == "USER : be brief. USER: [video]\nWhat is it? ASSISTANT:"


def test_the_small_model_takes_eight_frames_and_crops_like_the_published_processor(tiny: Family) -> None:
    assert tiny.inputs is not None
    assert (tiny.inputs.frames.count, tiny.inputs.frames.rule) == (8, "left-edges")
    assert (tiny.inputs.min_frames, tiny.inputs.max_frames) == (8, 8)
    assert (tiny.inputs.pixels.fit, tiny.inputs.pixels.crop_rounding) == ("crop", "down")
    assert tiny.num_video_tokens == 8 * 5
    assert tiny.default_sampling == PUBLISHED_SAMPLING


def test_two_clips_in_one_batch_give_what_each_gives_alone(tiny: Family) -> None:
    clips = torch.randn(2, 8, 3, 28, 28, generator=torch.Generator().manual_seed(4))
    together = tiny.encode(clips)["video"]
    for number in range(2):
        torch.testing.assert_close(tiny.encode(clips[number : number + 1])["video"][0], together[number])

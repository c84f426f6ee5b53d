"""The prompts of Video-LLaMA in both styles, with and without sound, and its small model."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from model.engine.sequence import VideoSegment
from model.families import load_family
from model.families.video_llama.family import PUBLISHED_SAMPLING
from model.families.video_llama.template import Llama2Template, VicunaTemplate
from model.family import EncodedClip, Family, build_prompt, count_prompt_tokens
from model.text.conversation import Clip, Conversation, Slot, SpecialToken
from tests.model.families.conversations import asked

HEARD = frozenset({"video", "audio"})
SENTENCE = "The video contains 2 frames sampled at 0.7, 2.2 seconds. "
SOUND = (
    "Close your eyes, open your ears and you imagine only based on the sound that: [audio]."
    "                 Close your ears, open your eyes and you see that <Video>[video]</Video>."
    "                  Now answer my question based on what you have just seen and heard."
)
MARKUP = (
    *("###", "##", "#", "Human:", "Assistant:", "[INST]", "[/INST]", "<<SYS>>", "<</SYS>>", "[", "/", "INST", "]"),
    *("<Video>", "</Video>", "<ImageHere>", "<AudioHere>", "<s>", "</s>", "<", ">", "S", "▁", " ", "\n"),
)

hostile = st.lists(st.one_of(st.sampled_from(MARKUP), st.text(max_size=3))).map("".join)


@pytest.fixture(scope="module")
def tiny() -> Family:
    return load_family("video-llama")


def heard(conversation: Conversation) -> Conversation:
    return replace(conversation, clips=tuple(replace(clip, parts=HEARD) for clip in conversation.clips))


def rendered(template: VicunaTemplate | Llama2Template, conversation: Conversation) -> str:
    pieces = template.render(conversation)
    return "".join(
        piece.name if isinstance(piece, SpecialToken) else f"[{piece.part}]" if isinstance(piece, Slot) else piece
        for piece in pieces
    )


def test_a_vicuna_prompt_without_sound_tells_the_times_of_the_frames() -> None:
    assert rendered(VicunaTemplate(), asked("What is it?", " A cat. ", "Where?")) == (
        f"###Human: <Video>[video]</Video> {SENTENCE} What is it?###Assistant: A cat.###Human: Where?###Assistant:"
    )


def test_a_vicuna_prompt_with_sound_begins_with_it_and_tells_no_times() -> None:
    assert rendered(VicunaTemplate(), heard(asked("What is it?"))) == f"###Human: {SOUND} What is it?###Assistant:"


def test_a_llama_2_prompt_marks_turns_by_special_tokens() -> None:
    assert rendered(Llama2Template(), asked("What is it?", " A cat. ", "Where?", system="Be brief.")) == (
        f"[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\n<Video>[video]</Video> {SENTENCE} What is it? [/INST] A cat. </s><s>"
        "[INST] Where? [/INST]"
    )
    assert rendered(Llama2Template(), heard(asked("Why?"))) == (f"[INST] <<SYS>>\n\n<</SYS>>\n\n{SOUND} Why? [/INST]")


def test_several_clips_are_told_of_one_after_the_other_each_with_its_own_sound() -> None:
    conversation = asked("Which?", num_clips=2)
    mixed = replace(conversation, clips=(replace(conversation.clips[0], parts=HEARD), conversation.clips[1]))
    text = rendered(VicunaTemplate(), mixed)
    assert text == f"###Human: {SOUND} <Video>[video]</Video> {SENTENCE} Which?###Assistant:"


def test_an_image_is_told_of_without_a_time() -> None:
    image = Clip(frame_indices=(0,), fps=1.0, media="image")
    conversation = replace(asked("What is it?"), clips=(image,))
    assert rendered(VicunaTemplate(), conversation) == "###Human: <Image>[video]</Image> What is it?###Assistant:"


def test_times_are_rounded_as_python_rounds_floats() -> None:
    clip = Clip(frame_indices=(1, 3, 7), fps=20.0)
    text = rendered(VicunaTemplate(), replace(asked("?"), clips=(clip,)))
    assert "sampled at 0.1, 0.1, 0.3 seconds" in text


@given(st.booleans(), hostile, hostile, hostile, hostile)
def test_no_text_can_imitate_a_turn_or_move_the_video(
    hears: bool, system: str, first: str, answer: str, second: str
) -> None:
    conversation = asked(first, answer, second, system=system)
    conversation = heard(conversation) if hears else conversation
    slots = [Slot(0, "audio"), Slot(0)] if hears else [Slot(0)]

    pieces = VicunaTemplate().render(conversation)
    assert [piece for piece in pieces if not isinstance(piece, str)] == slots
    text = "".join(piece for piece in pieces if isinstance(piece, str))
    assert text.count("###") == 4
    assert "####" not in text
    assert (text.count("###Human: "), text.count("###Assistant:")) == (2, 2)

    pieces = Llama2Template().render(conversation)
    assert [piece for piece in pieces if not isinstance(piece, str)] == [
        *slots,
        SpecialToken("</s>"),
        SpecialToken("<s>"),
    ]
    text = "".join(piece for piece in pieces if isinstance(piece, str))
    assert (text.count("[INST]"), text.count("[/INST]")) == (2, 2)
    assert (text.count("<<SYS>>"), text.count("<</SYS>>")) == (1, 1)
    assert "</s>" not in text
    assert "<s>" not in text
    assert (text.count("<Video>"), text.count("</Video>")) == (1, 1)


def test_the_small_model_sees_up_to_32_frames_and_hears(tiny: Family) -> None:
    assert tiny.inputs is not None
    assert (tiny.inputs.frames.count, tiny.inputs.min_frames, tiny.inputs.max_frames) == (8, 1, 32)
    assert tiny.inputs.pixels.fit == "decoder"
    assert tiny.inputs.sound is not None
    assert (tiny.inputs.sound.count, tiny.inputs.sound.rule) == (8, "left-edges")
    assert {part.name: part.optional for part in tiny.parts} == {"video": False, "audio": True}
    assert tiny.default_sampling == PUBLISHED_SAMPLING


def test_a_prompt_with_sound_has_the_rows_of_both_parts(tiny: Family) -> None:
    frames = torch.randn(1, 8, 3, 28, 28, generator=torch.Generator().manual_seed(1))
    mel = torch.randn(1, 8, 1, 128, 204, generator=torch.Generator().manual_seed(2))
    features = tiny.encode(frames, mel)
    clip = EncodedClip({name: part[0] for name, part in features.items()}, "clip")
    for conversation in (asked("What is it?"), heard(asked("What is it?"))):
        prompt = build_prompt(tiny, conversation, [clip])
        assert sum(segment.num_tokens for segment in prompt) == count_prompt_tokens(tiny, conversation)
    identities = [segment.identity for segment in prompt if isinstance(segment, VideoSegment)]
    assert identities == ["clip audio", "clip video"]

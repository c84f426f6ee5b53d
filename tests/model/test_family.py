"""Converting a conversation to the engine's prompt."""

import pytest
import torch

from model.engine.sequence import TextSegment, VideoSegment
from model.families import load_family
from model.family import EncodedClip, Family, build_prompt, count_prompt_tokens, tokenize_segments
from model.text.conversation import Clip, Conversation, Slot, SpecialToken, Turn
from model.text.tokenizer import TokenizerError, plain_tokenizer


@pytest.fixture(scope="module")
def family() -> Family:
    return load_family("videochat")


def conversation(num_clips: int) -> Conversation:
    clips = tuple(Clip(frame_indices=(number,), fps=1.0) for number in range(num_clips))
    return Conversation(clips=clips, turns=(Turn(role="user", text="Which?"),))


def test_bos_precedes_only_the_first_text_and_each_text_has_its_own_prefix() -> None:
    tokenizer = plain_tokenizer()
    parts = tokenize_segments(tokenizer, ("a", Slot(0), "b"))
    assert parts == (
        (tokenizer.bos_id, *tokenizer.encode("a")),
        Slot(0),
        tuple(tokenizer.encode("b")),
    )
    assert tokenizer.decode(tokenizer.encode("a") + tokenizer.encode("b")) == "a b"


def test_a_special_token_becomes_its_id_alone() -> None:
    tokenizer = plain_tokenizer(added=("<start>",))
    parts = tokenize_segments(tokenizer, ("a", SpecialToken("<start>"), SpecialToken("</s>"), "b"))
    assert parts == ((tokenizer.bos_id, *tokenizer.encode("a")), (354,), (2,), tuple(tokenizer.encode("b")))
    with pytest.raises(TokenizerError, match="lacks <end>"):
        tokenize_segments(tokenizer, ("a", SpecialToken("<end>")))


def test_projected_features_of_each_clip_replace_its_slot_in_the_prompt(family: Family) -> None:
    features = torch.randn(2, *family.parts[0].shape)
    clips = [EncodedClip({"video": features[0]}, "first"), EncodedClip({"video": features[1].half()}, "second")]
    prompt = build_prompt(family, conversation(2), clips)
    assert [type(part) for part in prompt] == [TextSegment, VideoSegment] * 2 + [TextSegment]
    videos = [part for part in prompt if isinstance(part, VideoSegment)]
    assert [video.identity for video in videos] == ["first video", "second video"]
    assert torch.equal(videos[0].embeddings, family.project("video", features[0]))
    assert torch.equal(videos[1].embeddings, family.project("video", features[1].half()))


@pytest.mark.parametrize("num_clips", [0, 1, 3])
def test_a_prompt_can_be_counted_before_anything_is_encoded(family: Family, num_clips: int) -> None:
    clips = [EncodedClip({"video": torch.randn(family.parts[0].shape)}, "clip")] * num_clips
    prompt = build_prompt(family, conversation(num_clips), clips)
    assert count_prompt_tokens(family, conversation(num_clips)) == sum(part.num_tokens for part in prompt)

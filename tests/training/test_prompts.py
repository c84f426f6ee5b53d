"""Dialogues become the family's own prompt, and the model learns to say the answers alone."""

from random import Random

import pytest

from model.families.videochat.family import VideoChatTemplate
from model.family import tokenize_segments
from model.text.conversation import Conversation, VideoSlot
from model.text.tokenizer import SPACE, Tokenizer
from tests.training.some_scenes import SCENE
from training.dialogues import draw_dialogue
from training.prompts import clip_of, conversation_about, example
from training.vocabulary import MAX_SECOND, learn_pieces


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer(learn_pieces(5, num_clips=60))


@pytest.mark.parametrize("num_clips", [0, 1])
def test_what_the_model_says_is_the_answers_each_with_its_separator(tokenizer: Tokenizer, num_clips: int) -> None:
    exchanges = draw_dialogue(Random(2), SCENE, 6)
    clip = clip_of(SCENE, seconds=0, fps=1) if num_clips else None
    found = example(tokenizer, conversation_about(clip, exchanges, system="Be brief."))
    said = [token for token, speaks in zip(found.after, found.is_answer, strict=True) if speaks]
    assert tokenizer.decode(said) == " ".join(f"{exchange.answer}###" for exchange in exchanges)
    assert bool(found.before) == bool(num_clips)


def test_the_tokens_before_an_answer_are_those_that_the_service_sends(tokenizer: Tokenizer) -> None:
    exchanges = draw_dialogue(Random(3), SCENE, 4)
    clip = clip_of(SCENE, seconds=0, fps=1)
    answered = conversation_about(clip, exchanges)
    learned = example(tokenizer, answered)
    asked = Conversation(clips=answered.clips, turns=answered.turns[:-1])
    before, slot, after = tokenize_segments(tokenizer, VideoChatTemplate().render(asked))
    assert isinstance(slot, VideoSlot)
    assert learned.before == before
    assert isinstance(after, tuple)
    assert learned.after[: len(after)] == after


def test_times_take_two_tokens_each_so_that_they_stand_at_even_distances(tokenizer: Tokenizer) -> None:
    for second in range(MAX_SECOND + 1):
        pieces = [tokenizer.token_bytes(token) for token in tokenizer.encode(f"at {second}.7 s")]
        assert f" {second}".encode() in pieces
        assert b".7" in pieces


def test_any_text_can_be_typed(tokenizer: Tokenizer) -> None:
    text = "Çà et là — 動く星 🌟\tend"
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert SPACE not in tokenizer.decode(tokenizer.encode("a b"))

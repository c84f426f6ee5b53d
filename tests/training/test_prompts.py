"""Dialogues become the family's prompt, and only answers are learned."""

from random import Random

import pytest

from model.families.videochat.family import VideoChatTemplate
from model.family import tokenize_segments
from model.text.conversation import Conversation, Slot
from model.text.tokenizer import SPACE, Tokenizer
from tests.training.some_scenes import SCENE
from training.dialogues import draw_dialogue
from training.prompts import clip_of, conversation_about, example
from training.vocabulary import MAX_SECOND, learn_pieces


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer(learn_pieces(5, num_clips=60))


@pytest.mark.parametrize("num_clips", [0, 1])
def test_the_learned_tokens_are_the_answers_with_their_separators(tokenizer: Tokenizer, num_clips: int) -> None:
    exchanges = draw_dialogue(Random(2), SCENE, 6)
    clip = clip_of(SCENE, seconds=0, fps=1) if num_clips else None
    found = example(tokenizer, conversation_about(clip, exchanges, system="Be brief."))
    learned = [token for token, is_answer in zip(found.after, found.is_answer, strict=True) if is_answer]
    assert tokenizer.decode(learned) == " ".join(f"{exchange.answer}###" for exchange in exchanges)
    assert bool(found.before) == bool(num_clips)


def test_the_tokens_before_an_answer_are_those_that_the_service_sends(tokenizer: Tokenizer) -> None:
    exchanges = draw_dialogue(Random(3), SCENE, 4)
    clip = clip_of(SCENE, seconds=0, fps=1)
    answered = conversation_about(clip, exchanges)
    learned = example(tokenizer, answered)
    asked = Conversation(clips=answered.clips, turns=answered.turns[:-1])
    before, slot, after = tokenize_segments(tokenizer, VideoChatTemplate().render(asked))
    assert isinstance(slot, Slot)
    assert learned.before == before
    assert isinstance(after, tuple)
    assert learned.after[: len(after)] == after


def test_times_have_two_tokens_each(tokenizer: Tokenizer) -> None:
    for second in range(MAX_SECOND + 1):
        pieces = [tokenizer.token_bytes(token) for token in tokenizer.encode(f"at {second}.7 s")]
        assert f" {second}".encode() in pieces
        assert b".7" in pieces


def test_any_text_can_be_typed(tokenizer: Tokenizer) -> None:
    text = "Çà et là — 動く星 🌟\tend"
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert SPACE not in tokenizer.decode(tokenizer.encode("a b"))

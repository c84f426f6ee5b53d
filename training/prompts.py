"""Converts dialogues to the family's prompt and its token ids, and marks the tokens of the answers."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from model.families.videochat.family import VideoChatTemplate
from model.family import tokenize_segments
from model.text.conversation import Clip, Conversation, Slot, Turn
from model.text.tokenizer import Tokenizer
from model.video.spec import FRAME_RULES
from training.corpus import sampled_frames
from training.dialogues import Exchange
from training.scenes import NUM_SAMPLED, Scene

TEMPLATE = VideoChatTemplate()
SEPARATOR = "###"


@dataclass(frozen=True, slots=True)
class Example:
    """The token ids before and after the video slot, and for each of the latter whether it belongs to an answer."""

    before: tuple[int, ...]
    after: tuple[int, ...]
    is_answer: tuple[bool, ...]


def clip_of(scene: Scene | None, *, seconds: float, fps: float) -> Clip:
    """Return the clip of a scene; without a scene, its frames follow from its length and rate."""
    if scene:
        return Clip(frame_indices=tuple(sampled_frames(scene)), fps=scene.fps)
    frames = FRAME_RULES["videochat"](max(1, round(seconds * fps)), NUM_SAMPLED)
    return Clip(frame_indices=tuple(frames), fps=fps)


def conversation_about(clip: Clip | None, exchanges: Sequence[Exchange], *, system: str = "") -> Conversation:
    """Return the conversation with every question answered."""
    turns = [
        turn
        for exchange in exchanges
        for turn in (Turn(role="user", text=exchange.question), Turn(role="assistant", text=exchange.answer))
    ]
    return Conversation(clips=(clip,) if clip else (), turns=tuple(turns), system=system)


def answered_segments(conversation: Conversation) -> tuple[str | Slot, ...]:
    """Return the rendered prompt with its last answer and the separator after it."""
    *turns, last = conversation.turns
    asked = Conversation(clips=conversation.clips, turns=tuple(turns), system=conversation.system)
    *segments, end = TEMPLATE.render(asked)
    assert isinstance(end, str) and last.role == "assistant", "an answered question comes last"
    return (*segments, f"{end} {last.text}{SEPARATOR}")


def example(tokenizer: Tokenizer, conversation: Conversation) -> Example:
    """Tokenize a dialogue; answers are the tokens between `Assistant:` and the next separator, inclusive."""
    segments = tokenize_segments(tokenizer, answered_segments(conversation))
    before, after = (segments[0], segments[2]) if len(segments) == 3 else ((), segments[0])
    assert isinstance(before, tuple) and isinstance(after, tuple)
    colon = tokenizer.encode("Assistant:")[-1]
    separator = tokenizer.encode("a" + SEPARATOR)[-1]
    is_answer, speaking = [], False
    for position, token in enumerate(after):
        is_answer.append(speaking)
        if speaking:
            speaking = token != separator
        else:
            speaking = (
                position > 0 and token == colon and tokenizer.token_bytes(after[position - 1]).endswith(b"Assistant")
            )
    return Example(before, after, tuple(is_answer))


def example_texts(conversation: Conversation) -> Iterator[str]:
    """Yield the texts of the prompt."""
    yield from (segment for segment in answered_segments(conversation) if isinstance(segment, str))

"""Dialogues as the model meets them: the family's own prompt, its token ids, and which of them it is to say."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from model.families.videochat.family import VideoChatTemplate
from model.family import tokenize_segments
from model.text.conversation import Clip, Conversation, Turn, VideoSlot
from model.text.tokenizer import Tokenizer
from model.video.spec import FRAME_RULES
from training.corpus import sampled_frames
from training.dialogues import Exchange
from training.world import NUM_SAMPLED, Scene

TEMPLATE = VideoChatTemplate()
SEPARATOR = "###"


@dataclass(frozen=True, slots=True)
class Example:
    """The token ids before and after the video's place, and for each of the latter whether the model says it."""

    before: tuple[int, ...]
    after: tuple[int, ...]
    said: tuple[bool, ...]


def clip_of(scene: Scene | None, *, seconds: float, fps: float) -> Clip:
    """What the prompt says of a clip; of one that is no scene, only its length and rate are known."""
    if scene:
        return Clip(frame_indices=tuple(sampled_frames(scene)), fps=scene.fps)
    frames = FRAME_RULES["videochat"](max(1, round(seconds * fps)), NUM_SAMPLED)
    return Clip(frame_indices=tuple(frames), fps=fps)


def conversation_about(clip: Clip | None, exchanges: Sequence[Exchange], *, system: str = "") -> Conversation:
    """The dialogue with every question answered."""
    turns = [
        turn
        for exchange in exchanges
        for turn in (Turn(role="user", text=exchange.question), Turn(role="assistant", text=exchange.answer))
    ]
    return Conversation(clips=(clip,) if clip else (), turns=tuple(turns), system=system)


def answered_segments(conversation: Conversation) -> tuple[str | VideoSlot, ...]:
    """The rendered prompt with its last answer, and the separator that ends it."""
    *turns, last = conversation.turns
    asked = Conversation(clips=conversation.clips, turns=tuple(turns), system=conversation.system)
    *segments, end = TEMPLATE.render(asked)
    assert isinstance(end, str) and last.role == "assistant", "an answered question comes last"
    return (*segments, f"{end} {last.text}{SEPARATOR}")


def example(tokenizer: Tokenizer, conversation: Conversation) -> Example:
    """The dialogue in token ids; the model says what stands between `Assistant:` and the next separator."""
    segments = tokenize_segments(tokenizer, answered_segments(conversation))
    before, after = (segments[0], segments[2]) if len(segments) == 3 else ((), segments[0])
    assert isinstance(before, tuple) and isinstance(after, tuple)
    colon = tokenizer.encode("Assistant:")[-1]
    separator = tokenizer.encode("a" + SEPARATOR)[-1]
    said, speaking = [], False
    for place, token in enumerate(after):
        said.append(speaking)
        if speaking:
            speaking = token != separator
        else:
            speaking = place > 0 and token == colon and tokenizer.token_bytes(after[place - 1]).endswith(b"Assistant")
    return Example(before, after, tuple(said))


def example_texts(conversation: Conversation) -> Iterator[str]:
    """The texts of the prompt."""
    yield from (segment for segment in answered_segments(conversation) if isinstance(segment, str))

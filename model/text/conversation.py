"""What is said: turns, videos and the rendered prompt of a conversation. Text only: no tokens, no tensors."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

Role = Literal["user", "assistant"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Turn:
    """One thing said, by the user or by the model."""

    role: Role
    text: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Clip:
    """What a prompt says of one video: which frames were sampled, and the rate that gives their seconds."""

    frame_indices: tuple[int, ...]
    fps: float
    media: Literal["video", "image"] = "video"
    """A still picture has no moments to speak of."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Conversation:
    """Everything the model is to see before it answers; the last turn is the user's question."""

    clips: tuple[Clip, ...]
    turns: tuple[Turn, ...]
    system: str = ""


@dataclass(frozen=True, slots=True)
class VideoSlot:
    """The place in a prompt where the video tokens of `clips[clip]` go."""

    clip: int


@dataclass(frozen=True, slots=True)
class SpecialToken:
    """A token that no text becomes, by its name in the vocabulary, e.g. `</s>`."""

    name: str


Part = str | SpecialToken | VideoSlot
"""What a rendered prompt is made of."""


class Template(Protocol):
    """How a family writes a conversation down."""

    @property
    def stop(self) -> Sequence[str]:
        """Strings at which an answer ends; they are never part of it."""

    def render(self, conversation: Conversation) -> tuple[Part, ...]:
        """The prompt as texts, special tokens and video slots, in order. Text typed by a user can forge none."""

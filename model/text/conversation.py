"""Conversations: turns, clips, and the pieces of a rendered prompt. Text only, no tokens and no tensors."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol


@dataclass(frozen=True, kw_only=True, slots=True)
class Turn:
    """One message of the user or of the model."""

    role: Literal["user", "assistant"]
    text: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Clip:
    """The facts about one video that a prompt may state: the sampled frames, and the rate that gives their seconds."""

    frame_indices: tuple[int, ...]
    fps: float
    media: Literal["video", "image"] = "video"
    """For an image, the prompt states no times."""
    parts: frozenset[str] = frozenset({"video"})
    """The parts of its features that a prompt can have slots for; without `audio`, its sound is not heard."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Conversation:
    """The input of one answer; the last turn is the user's question."""

    clips: tuple[Clip, ...]
    turns: tuple[Turn, ...]
    system: str = ""


@dataclass(frozen=True, slots=True)
class Slot:
    """The position in a prompt for the rows of one part of the features of `clips[clip]`, e.g. its video tokens."""

    clip: int
    part: str = "video"


@dataclass(frozen=True, slots=True)
class SpecialToken:
    """A special token, by its name in the vocabulary, e.g. `</s>`; text is never tokenized as one."""

    name: str


Piece = str | SpecialToken | Slot
"""One piece of a rendered prompt."""


class Template(Protocol):
    """Renders a conversation as a family's prompt."""

    @property
    def stop(self) -> Sequence[str]:
        """Strings that end an answer; they are not part of it."""

    def render(self, conversation: Conversation) -> tuple[Piece, ...]:
        """Return the prompt's texts, special tokens and slots in order; no text of a user can imitate them."""

"""Makes conversations, and renders them for comparison."""

from model.text.conversation import Clip, Conversation, Slot, SpecialToken, Template, Turn


def asked(*texts: str, system: str = "", num_clips: int = 1) -> Conversation:
    """Question, answer, question … about clips of two frames."""
    roles = ("user", "assistant") * len(texts)
    turns = tuple(Turn(role=role, text=text) for role, text in zip(roles, texts, strict=False))  # type: ignore[arg-type]
    return Conversation(clips=(Clip(frame_indices=(7, 22), fps=10.0),) * num_clips, turns=turns, system=system)


def rendered(template: Template, conversation: Conversation) -> str:
    """A prompt as one text, with `[video]` for each video."""
    parts = template.render(conversation)
    return "".join(
        part.name if isinstance(part, SpecialToken) else "[video]" if isinstance(part, Slot) else part for part in parts
    )

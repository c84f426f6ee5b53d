"""The prompts of Video-LLaMA: around Vicuna of the first version, `###Human: …###Assistant:`, and around Llama-2-chat.

They are those of the published demo, except that text of a user cannot imitate a turn or the markup around a video.
"""

import re

from model.features import AUDIO
from model.text.conversation import Clip, Conversation, Piece, Slot, SpecialToken, Turn

_MARKUP = re.compile(r"#{3,}|\[/?INST\]|<</?SYS>>|</?(?:Video|Image|ImageHere|AudioHere|unk|s)>")

# The runs of spaces are in the original: lines that are continued inside a string.
_BEFORE_SOUND = "Close your eyes, open your ears and you imagine only based on the sound that: "
_AFTER_SOUND = f".{' ' * 17}Close your ears, open your eyes and you see that "
_AFTER_SOUND_AND_SIGHT = f".{' ' * 18}Now answer my question based on what you have just seen and heard."


def neutralise(text: str) -> str:
    """Make text of a user or a client safe: it can imitate neither a turn nor the markup around a video.

    Spaces break up the markup of both formats: `###` becomes `# # #`, `[INST]` becomes `[ INST]`. It stays legible for
    readers and for the model, but cannot give the tokens of a separator.
    """
    return _MARKUP.sub(lambda found: _spaced(found[0]), text)


class VicunaTemplate:
    """`{system}###Human: {videos} {question}###Assistant: {answer}###Human: …###Assistant:`."""

    stop = ("###",)

    def render(self, conversation: Conversation) -> tuple[Piece, ...]:
        """Return the prompt as texts and slots, in order; the answer follows the last text."""
        assert conversation.turns and conversation.turns[-1].role == "user", "a question comes last"
        before = _ended(neutralise(conversation.system)) + "###Human: "
        pieces, text = _shown(conversation, before=before)
        turns = "###".join(map(_vicuna_turn, conversation.turns)).removeprefix("Human: ")
        return (*pieces, f"{text}{turns}###Assistant:")


class Llama2Template:
    """`[INST] <<SYS>>\\n{system}\\n<</SYS>>\\n\\n{videos} {question} [/INST] {answer} </s><s>[INST] … [/INST]`.

    The ends of turns are special tokens, as the original's tokenizer reads them.
    """

    stop = ()

    def render(self, conversation: Conversation) -> tuple[Piece, ...]:
        """Return the prompt as texts, special tokens and slots, in order; the answer follows the last text."""
        assert conversation.turns and conversation.turns[-1].role == "user", "a question comes last"
        text = f"[INST] <<SYS>>\n{neutralise(conversation.system)}\n<</SYS>>\n\n"
        pieces, text = _shown(conversation, before=text)
        for turn in conversation.turns:
            if turn.role == "user":
                text += f"{neutralise(turn.text)} [/INST]"
            else:
                pieces += [f"{text} {neutralise(turn.text.strip())} ", SpecialToken("</s>"), SpecialToken("<s>")]
                text = "[INST] "
        return (*pieces, text)


def _shown(conversation: Conversation, *, before: str) -> tuple[list[Piece], str]:
    """Return what is said of the clips, after the text `before`: texts and slots, and the text after them."""
    pieces: list[Piece] = []
    text = before
    for number, clip in enumerate(conversation.clips):
        media = clip.media.title()
        if AUDIO in clip.parts:
            pieces += [f"{text}{_BEFORE_SOUND}", Slot(number, AUDIO), f"{_AFTER_SOUND}<{media}>", Slot(number)]
            text = f"</{media}>{_AFTER_SOUND_AND_SIGHT} "
        else:
            pieces += [f"{text}<{media}>", Slot(number)]
            text = f"</{media}> {_sampled(clip)}"
    return pieces, text


def _sampled(clip: Clip) -> str:
    """Return the prompt's sentence about the sampled frames; empty for an image."""
    if clip.media == "image":
        return ""
    seconds = ", ".join(str(round(index / clip.fps, 1)) for index in clip.frame_indices)
    return f"The video contains {len(clip.frame_indices)} frames sampled at {seconds} seconds.  "


def _vicuna_turn(turn: Turn) -> str:
    text = _ended(neutralise(turn.text if turn.role == "user" else turn.text.strip()))
    return f"Human: {text}" if turn.role == "user" else f"Assistant: {text}"


def _ended(text: str) -> str:
    """Add a space after a final `#`, which would otherwise merge with the separator that follows."""
    return f"{text} " if text.endswith("#") else text


def _spaced(markup: str) -> str:
    return " ".join(markup) if markup.startswith("#") else f"{markup[0]} {markup[1:]}"

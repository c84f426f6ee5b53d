"""The prompt of LLaVA and its relatives: roles as words, and an end-of-sequence token behind each answer.

`SYSTEM USER: question ASSISTANT: answer</s>USER: question ASSISTANT:`. The families differ in the system text and in
how a question refers to its videos. Text of users and clients cannot imitate a turn or a special token.
"""

import re
from collections.abc import Iterable, Iterator
from itertools import groupby
from typing import ClassVar

from model.text.conversation import Conversation, Piece, Slot, SpecialToken
from model.text.tokenizer import EOS

_MARKUP = re.compile(
    r"(?:USER|ASSISTANT)(?=:)|</?(?:s|unk|pad|image|video|vid_patch|vid_start|vid_end|im_patch|im_start|im_end)>"
)


def neutralise(text: str) -> str:
    """Make text of a user or a client safe: it can imitate neither a turn nor a special token.

    Adds spaces, and so can make no new markup: `USER:` becomes `USER :`, and `<video>` becomes `< video>`, which
    readers and the model still understand.
    """
    return _MARKUP.sub(lambda found: f"< {found[0][1:]}" if found[0].startswith("<") else f"{found[0]} ", text)


class SeparatedTemplate:
    """Renders a conversation with two separators: a space after a question, and `</s>` after an answer.

    A family sets `system`, and overrides `question` if its videos have another place, or `reword` if its demo changes
    questions.
    """

    stop = (EOS,)
    system: ClassVar[str] = ""
    """The published system text; a session can replace it. If it is empty, the prompt begins with the first turn."""

    def render(self, conversation: Conversation) -> tuple[Piece, ...]:
        """Return the prompt as texts, special tokens and slots, in order; the answer follows the last text."""
        assert conversation.turns and conversation.turns[-1].role == "user", "a question comes last"
        return tuple(_joined(self._pieces(conversation)))

    def question(self, text: str, num_clips: int) -> Iterator[Piece]:
        """Yield a question with its videos, which precede it here, each with a line break behind it.

        Args:
            text: the question, already safe.
            num_clips: clips that the question introduces: all of the conversation in the first question, then none.
        """
        for number in range(num_clips):
            yield Slot(number)
            yield "\n"
        yield text

    def reword(self, text: str) -> str:
        """Return a question as the published demo passes it on; unchanged here."""
        return text

    def _pieces(self, conversation: Conversation) -> Iterator[Piece]:
        if system := neutralise(conversation.system) or self.system:
            yield f"{system} "
        num_clips = len(conversation.clips)
        for turn in conversation.turns:
            if turn.role == "assistant":
                yield f"ASSISTANT: {neutralise(turn.text.strip())}"
                yield SpecialToken(EOS)
            else:
                yield "USER: "
                yield from self.question(neutralise(self.reword(turn.text)), num_clips)
                yield " "
                num_clips = 0
        yield "ASSISTANT:"


def _joined(pieces: Iterable[Piece]) -> Iterator[Piece]:
    """Join texts that follow one another, because each text is tokenized by itself."""
    for is_text, group in groupby(pieces, key=lambda piece: isinstance(piece, str)):
        if is_text:
            yield "".join(piece for piece in group if isinstance(piece, str))
        else:
            yield from group

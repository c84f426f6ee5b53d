"""Stages of models whose prompt has video tokens in place of marks: from the prompt to an answer, in each turn.

A reference writes the place of a video as marks, e.g. as eight times `<image>` and the id -200.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from model.checkpoints.json_object import read_object
from model.family import Family
from model.text.conversation import Clip, Conversation, Slot, SpecialToken, Turn
from model.verification.answer_length import AnswerLengths
from model.verification.decoding import decode_greedily
from model.verification.inputs import checked, embedded, read_dialogue
from model.verification.stage import Claim, Finding, Stage
from model.weights import WeightsError

NUM_ANSWER_TOKENS = 16
"""The default of a folder that has no answer and does not set it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Mark:
    """The marks of one video in a reference."""

    text: str
    """In a prompt as text."""
    ids: tuple[int, ...]
    """In a prompt as token ids."""


def dialogue_findings(
    family: Family, folder: Path, clip: Clip, video_tokens: Tensor, mark: Mark, *, ids_name: str = "input_ids"
) -> Iterator[Finding]:
    """Compute the stages of every turn of a conversation about one video.

    Yields for turn n: `turnn.prompt` and `turnn.input_ids`, `turnn.inputs_embeds` [1, L, D], the int64
    `turnn.generated_ids` [new], `turnn.greedy_logits` [new, V] and `turnn.text`.

    Args:
        family: the model.
        folder: with the questions, and perhaps what the original made of them, in `dialogue.json`.
        clip: the video.
        video_tokens: its rows in the prompt, [N, D].
        mark: how the reference marks the video.
        ids_name: the name of the token ids in `dialogue.json`.

    Raises:
        WeightsError: the folder lacks its dialogue, or a prompt in it has no marks.
    """
    dialogue = read_dialogue(folder, "questions")
    lengths, eos = AnswerLengths(folder, default=NUM_ANSWER_TOKENS), family.tokenizer.eos_id
    expected_turns = dialogue.get("turns", [])
    turns: list[Turn] = []
    for number, question in enumerate(dialogue["questions"], start=1):
        expected = expected_turns[number - 1] if number <= len(expected_turns) else {}
        turns.append(Turn(role="user", text=question))
        conversation = Conversation(clips=(clip,), turns=tuple(turns), system=dialogue.get("system", ""))
        ids = prompt_ids(family, conversation, mark)
        prompt, expected_ids = prompt_text(family, conversation, mark), expected.get(ids_name)
        yield Claim(name=f"turn{number}.prompt", got=prompt, expected=expected.get("prompt"))
        yield Claim(name=f"turn{number}.input_ids", got=ids, expected=expected_ids)
        # The reference's ids if there are any, so that a wrong prompt does not change later stages.
        embeds = spliced(family, expected_ids or ids, video_tokens, mark)
        yield Stage(name=f"turn{number}.inputs_embeds", tensor=embeds)
        name = f"turn{number}.generated_ids"
        max_tokens = lengths.of(name, told=expected.get("generated_ids"), ends=((eos,),))
        answer, logits = decode_greedily(family.language_model, embeds, max_tokens=max_tokens, eos=eos)
        yield Stage(name=name, tensor=torch.tensor(answer), is_choice=True, is_of_language_model=True)
        yield Stage(name=f"turn{number}.greedy_logits", tensor=logits, follows=name, is_of_language_model=True)
        text = family.tokenizer.decode(answer).strip()
        yield Claim(name=f"turn{number}.text", got=text, expected=expected.get("text"), is_choice=True)
        turns.append(Turn(role="assistant", text=expected.get("text", text)))


def prompt_findings(
    family: Family, folder: Path, ids: Sequence[int], video_tokens: Tensor, mark: Mark, *, system: str = ""
) -> Iterator[Finding]:
    """Compute the stages after a prompt as token ids [L] that marks the place of `video_tokens` [N, D].

    If `config.json` has the question, perhaps after a line with the marks, the family's own prompt is compared first:
    `prompt` and `input_ids`. Then come
    `inputs_embeds` [1, L', D], `logits_first` [V] and the int64 `greedy_ids` [new].

    Args:
        family: the model.
        folder: of the reference.
        ids: its prompt.
        video_tokens: the rows of its video.
        mark: how it marks the video.
        system: its system text; empty: the family's.

    Raises:
        WeightsError: the prompt has no marks.
    """
    values = checked(read_object(folder / "config.json"), folder / "config.json")
    if "question" in values:
        turns = (Turn(role="user", text=values["question"].removeprefix(f"{mark.text}\n")),)
        conversation = Conversation(clips=(Clip(frame_indices=(0,), fps=1.0),), turns=turns, system=system)
        yield Claim(name="prompt", got=prompt_text(family, conversation, mark), expected=values.get("prompt"))
        yield Claim(name="input_ids", got=prompt_ids(family, conversation, mark), expected=list(ids))
    embeds = spliced(family, ids, video_tokens, mark)
    yield Stage(name="inputs_embeds", tensor=embeds)
    eos = family.tokenizer.eos_id
    max_tokens = AnswerLengths(folder, default=NUM_ANSWER_TOKENS).of("greedy_ids", ends=((eos,),))
    answer, logits = decode_greedily(family.language_model, embeds, max_tokens=max_tokens, eos=eos)
    yield Stage(name="logits_first", tensor=logits[0], is_of_language_model=True)
    yield Stage(name="greedy_ids", tensor=torch.tensor(answer), is_choice=True, is_of_language_model=True)


def prompt_text(family: Family, conversation: Conversation, mark: Mark) -> str:
    """Return a prompt as one text, with the marks in place of the video."""
    pieces = family.template.render(conversation)
    return "".join(
        mark.text if isinstance(piece, Slot) else piece.name if isinstance(piece, SpecialToken) else piece
        for piece in pieces
    )


def prompt_ids(family: Family, conversation: Conversation, mark: Mark) -> list[int]:
    """Return a prompt as token ids, with the marks in place of the video."""
    pieces = family.tokenize(conversation)
    return [token for piece in pieces for token in (mark.ids if isinstance(piece, Slot) else piece)]


@torch.inference_mode()
def spliced(family: Family, ids: Sequence[int], video_tokens: Tensor, mark: Mark) -> Tensor:
    """Return embeddings [1, L', D] of a prompt [L], with `video_tokens` [N, D] in place of the marks.

    Raises:
        WeightsError: the marks are not in the prompt, or are there twice, or an id is beyond the vocabulary.
    """
    row, marks = list(ids), list(mark.ids)
    first = next((place for place in range(len(row)) if row[place : place + len(marks)] == marks), None)
    if first is None:
        raise WeightsError("The prompt in the inputs has no slot for a video.")
    before, after = row[:first], row[first + len(marks) :]
    if mark.ids[0] in (*before, *after):
        raise WeightsError("The prompt in the inputs has marks beyond the slot for a video.")
    rows = [embedded(family, part) for part in (before, after)]
    return torch.cat((rows[0], video_tokens, rows[1])).unsqueeze(0)

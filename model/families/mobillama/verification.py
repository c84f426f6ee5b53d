"""MobiLlama's verification stages, from a prompt to an answer, named like the reference tensors.

A folder has either `inputs.safetensors`, with token ids, or `dialogue.json`, with prompts as text.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from model.checkpoints.json_object import read_object
from model.families.mobillama.template import OneShotTemplate
from model.family import Family
from model.text.conversation import Conversation, Turn
from model.text.tokenizer import Tokenizer, TokenizerError
from model.verification.answer_length import AnswerLengths
from model.verification.decoding import decode_greedily
from model.verification.inputs import embedded, read_dialogue, read_inputs, token_rows
from model.verification.stage import Claim, Finding, Stage

MAX_TOKENS = 20
"""The default, if neither `config.json` nor the reference's answer says how many."""


class TokenIdsOnly(Tokenizer):
    """Stands in for the tokenizer of a reference that has token ids only; such a model can only be verified."""

    def __init__(self, vocab_size: int) -> None:
        self.bos_id, self.eos_id, self.vocab_size = 1, 2, vocab_size

    def encode(self, text: str, *, bos: bool = False) -> list[int]:  # noqa: ARG002
        """Refuse to tokenize.

        Raises:
            TokenizerError: always.
        """
        raise TokenizerError("The folder has no tokenizer.model: the model can be verified, and cannot answer.")


@torch.inference_mode()
def verify_stages(family: Family, folder: Path) -> Iterator[Finding]:
    """Compute every stage of the model on the inputs in a folder.

    With `input_ids` [B, L], hidden size D and vocabulary V: `hidden_0` to `hidden_n` [B, L, D] (embeddings, then each
    layer's output, the last one after the final norm), `logits` [B, L, V] and the int64 `greedy_ids_i` of row i. With
    prompt i as text: `prompti.greedy_logits` [new, V] and `prompti.generated_ids` [new].

    Raises:
        WeightsError: the folder lacks its inputs.
        TokenizerError: the folder has prompts as text, but no tokenizer.
    """
    lengths = AnswerLengths(folder, default=MAX_TOKENS)
    yield from _published_prompts(folder)
    if (folder / "inputs.safetensors").is_file():
        rows = token_rows(family, read_inputs(folder, "input_ids"), "input_ids")
        yield from _of_ids(family, torch.tensor(rows), lengths)
    else:
        yield from _of_texts(family, read_dialogue(folder, "prompts")["prompts"], lengths)


def _published_prompts(folder: Path) -> Iterator[Claim]:
    """Compare the chat prompt with the texts in `prompts.json`, if there is one."""
    if not (folder / "prompts.json").is_file():
        return
    template = OneShotTemplate()
    for number, case in enumerate(read_object(folder / "prompts.json")["cases"]):
        texts = template.render(Conversation(clips=(), turns=_turns(case["turns"])))
        yield Claim(name=f"prompt{number}", got="".join(map(str, texts)), expected=case["prompt"])
        yield Claim(name=f"prompt{number}.stop", got=list(template.stop), expected=[case["stop_str"]])


def _turns(exchanges: Sequence[Sequence[str | None]]) -> tuple[Turn, ...]:
    """Return the turns of pairs of question and answer; the last answer is None."""
    turns: list[Turn] = []
    for question, answer in exchanges:
        turns.append(Turn(role="user", text=question or ""))
        turns += [] if answer is None else [Turn(role="assistant", text=answer)]
    return tuple(turns)


def _of_ids(family: Family, input_ids: Tensor, lengths: AnswerLengths) -> Iterator[Stage]:
    network = family.language_model
    output = network(input_ids=input_ids.to(family.device), output_hidden_states=True)
    for number, hidden in enumerate(output.hidden_states):
        yield Stage(name=f"hidden_{number}", tensor=hidden, is_of_language_model=number > 0)
    yield Stage(name="logits", tensor=output.logits, is_of_language_model=True)
    for number, row in enumerate(input_ids.tolist()):
        name = f"greedy_ids_{number}"
        ids, _ = _greedily(family, row, lengths.of(name, ends=((family.tokenizer.eos_id,),)))
        yield _choice(name, ids)


def _of_texts(family: Family, prompts: Sequence[Mapping[str, Any]], lengths: AnswerLengths) -> Iterator[Finding]:
    for number, prompt in enumerate(prompts):
        prompt_ids = family.tokenizer.encode(prompt["prompt"], bos=True)
        yield Claim(name=f"prompt{number}.input_ids", got=prompt_ids, expected=prompt.get("input_ids"))
        name = f"prompt{number}.generated_ids"
        max_tokens = lengths.of(name, told=prompt.get("generated_ids"), ends=((family.tokenizer.eos_id,),))
        ids, logits = _greedily(family, prompt_ids, max_tokens)
        yield _choice(name, ids)
        yield Stage(name=f"prompt{number}.greedy_logits", tensor=logits, follows=name, is_of_language_model=True)
        text = family.tokenizer.decode(ids).strip()
        yield Claim(name=f"prompt{number}.text", got=text, expected=prompt.get("text"), is_choice=True)


def _greedily(family: Family, prompt_ids: Sequence[int], max_tokens: int) -> tuple[list[int], Tensor]:
    embeddings = embedded(family, prompt_ids)
    return decode_greedily(family.language_model, embeddings[None], max_tokens=max_tokens, eos=family.tokenizer.eos_id)


def _choice(name: str, ids: Sequence[int]) -> Stage:
    return Stage(name=name, tensor=torch.tensor(ids), is_choice=True, is_of_language_model=True)

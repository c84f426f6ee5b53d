"""Decides how many tokens a verification decodes: as many as the reference's answer has, if there is one."""

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from model.checkpoints.json_object import read_object
from model.weights import WeightsError, read_safetensors

EXPECTED = "expected.safetensors"
MAX_STATED = 4096
"""The largest `max_new_tokens` of a reference: far above all known ones, and a bound of the time."""


class AnswerLengths:
    """The lengths of the answers in a reference, and the limit that its `config.json` states."""

    def __init__(self, folder: Path, *, default: int, key: str = "max_new_tokens") -> None:
        """Read a folder's reference.

        Args:
            folder: of the reference.
            default: the limit if `config.json` states none.
            key: the limit's name within `generation` in `config.json`, or beside it.

        Raises:
            WeightsError: the reference is damaged, or the stated limit is no number of tokens.
        """
        self.stated = stated_limit(folder / "config.json", key)
        """The limit in `config.json`, if there is one."""
        self.limit = self.stated or default
        """The limit of an answer that the reference does not have."""
        self._expected = read_safetensors(folder / EXPECTED) if (folder / EXPECTED).is_file() else {}

    def of(self, name: str, *, told: Sequence[int] | None = None, ends: Collection[Sequence[int]] = ()) -> int:
        """Return the most tokens to decode for an answer.

        It is the number of the reference's tokens. A reference that ended by itself has one token more at least, so
        that an answer that does not end there differs.

        Args:
            name: of its ids in `expected.safetensors`.
            told: its ids in another file; used if `expected.safetensors` has none.
            ends: the sequences that end an answer.
        """
        tensor = self._expected.get(name)
        ids = list(told or ()) if tensor is None else tensor.flatten().tolist()
        if not ids:
            return self.limit
        is_ended = any(ids[-len(end) :] == list(end) for end in ends)
        return max(len(ids) + 1, self.limit) if is_ended else len(ids)


def stated_limit(path: Path, key: str) -> int | None:
    """Return the most tokens of an answer that a `config.json` states; None if it states none.

    Raises:
        WeightsError: the file is damaged, or the limit is no number of tokens.
    """
    values = read_object(path)
    generation: Any = values.get("generation", values)
    if not isinstance(generation, dict):
        raise WeightsError(f"generation in {path} must be an object, not {generation!r}.")
    limit = generation.get(key)
    if limit is None:
        return None
    if not isinstance(limit, int) or isinstance(limit, bool) or not 1 <= limit <= MAX_STATED:
        raise WeightsError(f"{key} in {path} must be a whole number from 1 to {MAX_STATED:,}, not {limit!r}.")
    return limit

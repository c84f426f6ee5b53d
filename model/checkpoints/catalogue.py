"""Describes a published checkpoint: what `reeltalk models known` lists and `reeltalk pull` downloads. No torch."""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True, slots=True)
class PublishedCheckpoint:
    """One published size of a family, and where its files are."""

    name: str
    """Of the checkpoint, e.g. `video-chatgpt-7b`; the name that `reeltalk pull` takes."""
    size: str
    """One of the family's `SIZES`."""
    licence: str
    """Of the weights, as their authors state it."""
    repositories: Mapping[str, str] = field(default_factory=dict)
    """Repositories of the Hugging Face Hub by the folder that `pull` puts each into; `.` is the target itself."""
    note: str = ""
    """A sentence about the files that are not on the Hub."""

"""What the models of each family take, known without loading the family's code. Imports no torch."""

import importlib
from typing import Literal

from model.family_names import family_names
from model.video.inputs import InputSpec

Modality = Literal["video", "audio", "text"]
"""`video`: questions about videos. `audio`: about their sound as well. `text`: questions without videos."""


def sees_videos(family: str) -> bool:
    """Return whether a family answers questions about videos; true for an unknown family, which no worker can load.

    The package of a family without videos says so: `MODALITIES = ("text",)`.
    """
    if family not in family_names():
        return True
    package = importlib.import_module(f"model.families.{family.replace('-', '_')}")
    return "video" in getattr(package, "MODALITIES", ("video",))


def modalities_of(inputs: InputSpec | None) -> tuple[Modality, ...]:
    """Return what a model with these inputs answers questions about; None is a model without videos."""
    if inputs is None:
        return ("text",)
    return ("video",) if inputs.sound is None else ("video", "audio")

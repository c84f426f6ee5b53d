"""What the models of each family take, known without loading the family's code. Imports no torch."""

import importlib
import pkgutil
from pathlib import Path
from typing import Literal

Modality = Literal["video", "text"]
"""`video`: questions about videos. `text`: questions without videos."""

_FAMILIES = Path(__file__).parent / "families"


def sees_videos(family: str) -> bool:
    """Return whether a family answers questions about videos; true for an unknown family, which no worker can load.

    The package of a family without videos says so: `MODALITIES = ("text",)`.
    """
    name = family.replace("-", "_")
    if name not in {module.name for module in pkgutil.iter_modules([str(_FAMILIES)])}:
        return True
    package = importlib.import_module(f"model.families.{name}")
    return "video" in getattr(package, "MODALITIES", ("video",))

"""Reads a JSON object out of a file of a checkpoint."""

import json
from pathlib import Path
from typing import Any

from model.weights import WeightsError


def read_object(path: Path) -> dict[str, Any]:
    """A JSON object.

    Raises:
        WeightsError: the file is absent or holds something else.
    """
    try:
        values = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise WeightsError(f"{path} is not there or is no JSON file.") from error
    if not isinstance(values, dict):
        raise WeightsError(f"{path} holds no JSON object.")
    return values

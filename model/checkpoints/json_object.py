"""Reads a JSON object from a file of a checkpoint."""

import json
from pathlib import Path
from typing import Any

from model.weights import WeightsError


def read_object(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file.

    Raises:
        WeightsError: the file is absent, or does not hold a JSON object.
    """
    try:
        values = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise WeightsError(f"{path} does not exist or is not a JSON file.") from error
    if not isinstance(values, dict):
        raise WeightsError(f"{path} does not hold a JSON object.")
    return values

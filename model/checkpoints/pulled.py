"""Records in a downloaded folder which repository of the Hub it holds; some files do not tell which model they are."""

import json
from pathlib import Path

from model.checkpoints.json_object import read_object
from model.weights import WeightsError

PULLED = "reeltalk-pull.json"


def write_pulled(folder: Path, repository: str) -> None:
    """Record that a folder holds a repository, `owner/name`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / PULLED).write_text(json.dumps({"repository": repository}) + "\n")


def pulled_repository(folder: Path) -> str | None:
    """Return the repository that a folder holds; None if `reeltalk pull` did not write it.

    Raises:
        WeightsError: the record is damaged.
    """
    if not (folder / PULLED).is_file():
        return None
    repository = read_object(folder / PULLED).get("repository")
    if not isinstance(repository, str):
        raise WeightsError(f"{folder / PULLED} must name a repository as text, not {repository!r}.")
    return repository

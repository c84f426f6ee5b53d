"""Downloads a repository of the Hugging Face Hub into a folder; the only module of `model` that uses the network."""

from pathlib import Path

from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from model.checkpoints.pulled import write_pulled
from model.weights import WeightsError

WANTED = ("*.json", "*.model", "*.safetensors")
PICKLES = ("*.bin", "*.pth")
TIMEOUT = 10.0
"""Seconds to wait for the Hub's first response."""


def pull(repository: str, folder: Path, *, revision: str | None) -> None:
    """Download weights, sizes and tokenizer of a repository; files that exist already are kept.

    Pickled weights are downloaded only if there are no safetensors. Code is never downloaded. `PULLED` in the folder
    names the repository.

    Args:
        repository: `owner/name` on the Hub.
        folder: where to put the files.
        revision: a branch, a tag or a commit; None is the main branch.

    Raises:
        WeightsError: there is no such repository, it needs a login, or the Hub cannot be reached.
    """
    try:
        files = HfApi().model_info(repository, revision=revision, timeout=TIMEOUT).siblings or []
        has_safetensors = any(file.rfilename.endswith(".safetensors") for file in files)
        wanted = [*WANTED, *(() if has_safetensors else PICKLES)]
        snapshot_download(repository, revision=revision, local_dir=folder, allow_patterns=wanted)
        write_pulled(folder, repository)
    except Exception as error:
        raise WeightsError(_refusal(repository, error)) from error


def _refusal(repository: str, error: Exception) -> str:
    match error:
        case HFValidationError():
            return f"{repository!r} is not a repository name of the Hub; names look like lmsys/vicuna-7b-v1.5."
        case GatedRepoError():
            return f"{repository} is gated. Accept its terms on its page, and set HF_TOKEN."
        case RepositoryNotFoundError():
            return f"The Hub has no repository {repository}, or it is private and HF_TOKEN gives no access to it."
        case RevisionNotFoundError():
            return f"{repository} has no such revision."
        case OfflineModeIsEnabled() | LocalEntryNotFoundError() | HfHubHTTPError() | OSError():
            return _UNREACHABLE
        # The Hub's client does not translate the errors of its HTTP client, httpx or httpx2.
        case _ if type(error).__module__.startswith("httpx"):
            return _UNREACHABLE
        case _:
            raise error


_UNREACHABLE = (
    "The Hugging Face Hub cannot be reached from here. Check the network (HTTPS_PROXY, HF_ENDPOINT, HF_HUB_OFFLINE), "
    "or download the files on another machine and copy the folder."
)

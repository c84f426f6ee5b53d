"""The published sizes of MobiLlama, one repository of the Hub each."""

from model.checkpoints.catalogue import PublishedCheckpoint


def _checkpoint(repository: str, size: str) -> PublishedCheckpoint:
    return PublishedCheckpoint(
        name=repository.lower(), size=size, licence="Apache-2.0", repositories={".": f"MBZUAI/{repository}"}
    )


RELEASES = (
    _checkpoint("MobiLlama-05B", "05b"),
    _checkpoint("MobiLlama-05B-Chat", "05b"),
    _checkpoint("MobiLlama-08B", "08b"),
    _checkpoint("MobiLlama-1B", "1b"),
    _checkpoint("MobiLlama-1B-Chat", "1b"),
)

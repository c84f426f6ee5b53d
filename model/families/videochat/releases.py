"""The published sizes of VideoChat. None of them is complete on the Hub."""

from model.checkpoints.catalogue import PublishedCheckpoint

_LICENCE = "not stated (code MIT); the language model LLaMA-1's"
_NOTE = "The Hub has no complete copy; docs/checkpoints.md says where each of the four parts is."

RELEASES = (
    PublishedCheckpoint(name="videochat-7b", size="7b", licence=_LICENCE, note=_NOTE),
    PublishedCheckpoint(name="videochat-13b", size="13b", licence=_LICENCE, note=_NOTE),
)

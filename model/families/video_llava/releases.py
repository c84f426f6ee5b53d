"""The published size of Video-LLaVA, one repository of the Hub."""

from model.checkpoints.catalogue import PublishedCheckpoint

RELEASES = (
    PublishedCheckpoint(
        name="video-llava-7b",
        size="7b",
        licence="Apache-2.0, intended for non-commercial use; the language model Llama 2's",
        repositories={".": "LanguageBind/Video-LLaVA-7B"},
    ),
)

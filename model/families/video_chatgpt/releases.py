"""The published size of Video-ChatGPT, whose parts are three repositories of the Hub."""

from model.checkpoints.catalogue import PublishedCheckpoint

RELEASES = (
    PublishedCheckpoint(
        name="video-chatgpt-7b",
        size="7b",
        licence="non-commercial, see its repository; the language model LLaMA-1's",
        repositories={
            ".": "MBZUAI/Video-ChatGPT-7B",
            "clip-vit-large-patch14": "openai/clip-vit-large-patch14",
            "LLaVA-Lightning-7B-v1-1": "mmaaz60/LLaVA-7B-Lightening-v1-1",
        },
    ),
)

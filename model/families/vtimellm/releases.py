"""The published size of VTimeLLM; its language model and CLIP are on the Hub, and its own files are not."""

from model.checkpoints.catalogue import PublishedCheckpoint

RELEASES = (
    PublishedCheckpoint(
        name="vtimellm-7b",
        size="7b",
        licence="CC BY-NC-ND 4.0; the language model Llama 2's",
        repositories={
            "clip-vit-large-patch14": "openai/clip-vit-large-patch14",
            "vicuna-7b-v1.5": "lmsys/vicuna-7b-v1.5",
        },
        note="The folders vtimellm-vicuna-v1-5-7b-stage1, -stage2 and -stage3 are not on the Hub: download them from "
        "checkpoints in https://cloud.tsinghua.edu.cn/d/6db5d02883124826aa6f.",
    ),
)

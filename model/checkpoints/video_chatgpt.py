"""Video-ChatGPT as published: its sizes, and the tokens that it adds."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from model.checkpoints.huggingface import llama_sizes
from model.checkpoints.json_object import read_object
from model.networks.llama import DecoderConfig
from model.networks.video_chatgpt import ClipVisionConfig, VideoChatGPTConfig
from model.weights import WeightsError

VIDEO_PATCH, VIDEO_START, VIDEO_END = "<vid_patch>", "<vid_start>", "<vid_end>"
VIDEO_TOKENS = (VIDEO_PATCH, VIDEO_START, VIDEO_END)
"""What Video-ChatGPT adds to the tokens of LLaVA, in the order of their ids."""

PUBLISHED_7B = VideoChatGPTConfig(
    vision=ClipVisionConfig(image_size=224, patch_size=14, width=1024, depth=24, num_heads=16, mlp_width=4096),
    decoder=DecoderConfig(vocab_size=32006, width=4096, depth=32, num_heads=32, mlp_width=11008),
    added_tokens=("<im_patch>", "<im_start>", "<im_end>", *VIDEO_TOKENS),
)
"""openai/clip-vit-large-patch14 and LLaVA-Lightning-7B-v1-1, to whose tokens Video-ChatGPT adds three."""


def read_sizes(path: Path) -> VideoChatGPTConfig:
    """The sizes in a `config.json`: one of ours, or one laid out as `clip` and `llm`.

    Raises:
        WeightsError: there is none, or a size is missing or unknown.
    """
    values = read_object(path)
    try:
        return _sizes_by_part(values) if "clip" in values else VideoChatGPTConfig.from_json(values)
    except (TypeError, KeyError, AttributeError) as error:
        raise WeightsError(f"{path} does not hold the sizes of a Video-ChatGPT model ({error}).") from error


def _clip_sizes(values: Mapping[str, Any]) -> ClipVisionConfig:
    return ClipVisionConfig(
        image_size=values["image_size"],
        patch_size=values["patch_size"],
        width=values["hidden_size"],
        depth=values["num_hidden_layers"],
        num_heads=values["num_attention_heads"],
        mlp_width=values["intermediate_size"],
    )


def _sizes_by_part(values: Mapping[str, Any]) -> VideoChatGPTConfig:
    special_ids = values["special_token_ids"]
    return VideoChatGPTConfig(
        vision=_clip_sizes(values["clip"]),
        decoder=llama_sizes(values["llm"]),
        added_tokens=tuple(sorted(special_ids, key=special_ids.__getitem__)),
    )

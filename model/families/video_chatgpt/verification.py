"""Video-ChatGPT's verification stages, from pixels to an answer, named like the reference tensors."""

from collections.abc import Iterator
from pathlib import Path

import torch

from model.families.video_chatgpt.network import VideoChatGPTNetwork
from model.families.video_chatgpt.published import VIDEO_PATCH
from model.family import Family
from model.features import VIDEO
from model.verification.inputs import read_inputs, token_rows
from model.verification.splicing import Mark, prompt_findings
from model.verification.stage import Finding, Stage


@torch.inference_mode()
def verify_stages(family: Family, folder: Path) -> Iterator[Finding]:
    """Compute every stage of the model on the inputs in a folder: `pixel_values` [T, 3, H, W], `input_ids` [1, L].

    With T frames of S patches of width C, hidden size D and vocabulary V: `frame_features` [T, S, C],
    `spatio_temporal_features` [100 + S, C] and its `_half` in float16, `video_tokens` [100 + S, D],
    `inputs_embeds` [1, L, D], `logits_first` [V], and the int64 `greedy_ids` of an answer.

    Raises:
        WeightsError: the folder lacks its inputs, or they have no slot for a video.
    """
    network, device = family.network, family.device
    assert isinstance(network, VideoChatGPTNetwork), "these stages are for Video-ChatGPT"
    inputs = read_inputs(folder, "pixel_values", "input_ids")
    patches = network.see(inputs["pixel_values"].to(device, family.dtype).unsqueeze(0))
    yield Stage(name="frame_features", tensor=patches[0])
    features = network.pool(patches)[0]
    yield Stage(name="spatio_temporal_features", tensor=features)
    yield Stage(name="spatio_temporal_features_half", tensor=features.half())
    video_tokens = network.project(VIDEO, features)
    yield Stage(name="video_tokens", tensor=video_tokens)
    patches_mark = Mark(
        text=VIDEO_PATCH * family.num_video_tokens,
        ids=(family.tokenizer.special_id(VIDEO_PATCH),) * family.num_video_tokens,
    )
    yield from prompt_findings(family, folder, token_rows(family, inputs, "input_ids")[0], video_tokens, patches_mark)

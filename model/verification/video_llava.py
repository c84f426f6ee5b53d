"""What the references of both Video-LLaVAs have in common: their sizes, and the stages from pixels to video tokens."""

from collections.abc import Generator, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from model.checkpoints.folder import read_folder
from model.checkpoints.huggingface import ROPE_THETA, llama_sizes
from model.family import Family
from model.features import VIDEO
from model.networks.clip import ClipEncoder, clip_sizes, keys_beyond_encoder
from model.networks.video_llava import VideoLlavaConfig, VideoLlavaNetwork
from model.verification.inputs import read_inputs, token_rows
from model.verification.splicing import Mark, prompt_findings
from model.verification.stage import Finding, Omission, Stage
from model.weights import KeyMap, load_strict

IMAGE_MARK, IMAGE_MARK_ID = "<image>", -200
"""The original's mark of one frame, in a prompt as text and as ids."""


def reference_sizes(values: Mapping[str, Any], *, has_temporal_attention: bool) -> VideoLlavaConfig:
    """Convert the sizes in the `config.json` of a reference.

    Args:
        values: its content.
        has_temporal_attention: whether the encoder of the family attends over time.

    Raises:
        KeyError, TypeError: a size is missing.
        ValueError: the model is another one, or uses other layers or tokens than Video-LLaVA.
    """
    vision, decoder = values["vision"], values["llm"]
    if vision["video_add_time_attn"] is not has_temporal_attention:
        raise ValueError(f"video_add_time_attn is {vision['video_add_time_attn']}, so it is the other Video-LLaVA")
    if vision["select_layer"] != -2 or vision["video_drop_cls"] or decoder.get("rope_theta", ROPE_THETA) != ROPE_THETA:
        raise ValueError("select_layer must be -2, video_drop_cls false and rope_theta 10000")
    return VideoLlavaConfig(
        vision=clip_sizes(vision),
        activation=vision["hidden_act"],
        num_frames=vision["num_frames"],
        decoder=llama_sizes(decoder),
    )


def frame_marks(family: Family) -> Mark:
    """Return the original's marks of one video: one for each frame."""
    num_frames = _network(family).config.num_frames
    return Mark(text=IMAGE_MARK * num_frames, ids=(IMAGE_MARK_ID,) * num_frames)


@torch.inference_mode()
def verify_pixels(family: Family, folder: Path, *, image_prefix: str, system: str = "") -> Iterator[Finding]:
    """Compute every stage of a reference that begins with pixels.

    With T frames of S patches of width C, hidden size D and vocabulary V: `video_features` [T, 1 + S, C],
    `video_tokens` [T, 1 + S, D], `image_features` [S, C] and `image_tokens` [S, D] if the folder has an image tower,
    `inputs_embeds` [1, L, D], `logits_first` [V] and the int64 `greedy_ids`.

    Args:
        family: the model.
        folder: with `pixel_values_video` [3, T, H, W], `pixel_values_image` [3, H, W] and `input_ids` [1, L].
        image_prefix: of the keys of the image tower, which the model itself does not load.
        system: the system text of the reference's prompt; empty: the family's.

    Raises:
        WeightsError: the folder lacks its inputs, or they have no slot for a video.
    """
    inputs = read_inputs(folder, "pixel_values_video", "input_ids")
    pixel_values = inputs["pixel_values_video"].transpose(0, 1).unsqueeze(0)  # [1, T, 3, H, W]
    video_tokens = yield from encoder_stages(family, pixel_values)
    if "pixel_values_image" in inputs:
        yield from _image_stages(family, folder, inputs["pixel_values_image"], image_prefix)
    ids = token_rows(family, inputs, "input_ids")[0]
    yield from prompt_findings(family, folder, ids, video_tokens, frame_marks(family), system=system)


@torch.inference_mode()
def encoder_stages(family: Family, pixel_values: Tensor) -> Generator[Stage, None, Tensor]:
    """Yield `video_features` and `video_tokens` of a clip [1, T, 3, S, S]; return its rows in the prompt, [N, D]."""
    network = _network(family)
    features = network.encode(pixel_values.to(family.device, family.dtype))[VIDEO]
    by_frame = features.reshape(network.config.num_frames, -1, features.shape[-1])
    yield Stage(name="video_features", tensor=by_frame)
    video_tokens = network.project(VIDEO, by_frame)
    yield Stage(name="video_tokens", tensor=video_tokens)
    return video_tokens.flatten(0, 1)


def _image_stages(family: Family, folder: Path, pixel_values: Tensor, prefix: str) -> Iterator[Finding]:
    """Compute the stages of an image [3, H, W]. Its tower is loaded for this alone."""
    weights = {key: tensor for key, tensor in read_folder(folder).items() if key.startswith(prefix)}
    if not weights:
        reason = "the folder has no image tower, which videos do not need"
        yield from (Omission(name=name, reason=reason) for name in ("image_features", "image_tokens"))
        return
    network = _network(family)
    sizes = network.config
    with torch.device("meta"):
        tower = ClipEncoder(sizes.vision, activation=sizes.activation)
    key_map = KeyMap(renames=((f"^{prefix}", ""),), ignored=keys_beyond_encoder(sizes.vision, prefix=prefix))
    load_strict(tower, weights, key_map=key_map, dtype=family.dtype)
    tower.restore_buffers()
    tower.to(family.device)
    features = tower(pixel_values.to(family.device, family.dtype).unsqueeze(0))[0, 1:]
    yield Stage(name="image_features", tensor=features)
    yield Stage(name="image_tokens", tensor=network.project(VIDEO, features))


def _network(family: Family) -> VideoLlavaNetwork:
    assert isinstance(family.network, VideoLlavaNetwork), "these stages are for Video-LLaVA"
    return family.network

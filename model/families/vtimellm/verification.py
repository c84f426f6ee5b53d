"""VTimeLLM's verification stages, from pixels to an answer, named like the reference tensors.

A folder has either `inputs.safetensors`, with pixels, or `clip.mp4`, whose frames are decoded first.
"""

import re
from collections.abc import Generator, Iterable, Iterator
from pathlib import Path

import torch
from torch import Tensor

from model.families.vtimellm.network import VTimeLLMNetwork
from model.family import Family
from model.features import VIDEO
from model.verification.frames import frame_findings
from model.verification.inputs import read_clip, read_inputs, token_rows
from model.verification.splicing import Mark, dialogue_findings, prompt_findings
from model.verification.stage import Finding, Stage
from model.weights import read_safetensors

MARK = Mark(text="<video>", ids=(-200,))
"""How the references mark the video's place, whatever the number of its frames."""
EXPECTED = "expected.safetensors"


@torch.inference_mode()
def verify_stages(family: Family, folder: Path) -> Iterator[Finding]:
    """Compute every stage of the model on the inputs in a folder.

    With N frames, embeddings of width C and hidden size D: `features` [N, C], `video_tokens` [N, D], and each matrix
    [out, in] with merged adapters that the reference has. From a clip also `clip.indices`, `video_stats` [2, N, 3] and
    `pixel_values_sub`; what follows is in `model.verification.splicing`.

    Raises:
        WeightsError: the folder lacks its inputs or its dialogue.
        VideoError: the clip cannot be decoded.
    """
    network = family.network
    assert isinstance(network, VTimeLLMNetwork), "these stages are for VTimeLLM"
    if (folder / "inputs.safetensors").is_file():
        inputs = read_inputs(folder, "pixel_values", "input_ids")
        video_tokens = yield from _encoder_stages(network, inputs["pixel_values"].to(family.device, family.dtype))
        yield from _merged(family, folder)
        yield from prompt_findings(family, folder, token_rows(family, inputs, "input_ids")[0], video_tokens, MARK)
    else:
        clip, pixel_values = read_clip(family, folder)
        yield from frame_findings(clip, pixel_values, folder)
        yield Stage(name="pixel_values_sub", tensor=pixel_values[0, ::11, :, ::7, ::7])
        video_tokens = yield from _encoder_stages(network, pixel_values[0].to(family.device, family.dtype))
        yield from _merged(family, folder)
        yield from dialogue_findings(family, folder, clip, video_tokens, MARK)


def _encoder_stages(network: VTimeLLMNetwork, frames: Tensor) -> Generator[Finding, None, Tensor]:
    """Yield the stages from frames [N, 3, H, W] to video tokens [N, D], and return the video tokens."""
    features = network.encode(frames.unsqueeze(0))[VIDEO][0]
    yield Stage(name="features", tensor=features)
    video_tokens = network.project(VIDEO, features)
    yield Stage(name="video_tokens", tensor=video_tokens)
    return video_tokens


def _merged(family: Family, folder: Path) -> Iterator[Stage]:
    """Yield the matrices of LLaMA, [out, in], that the reference has, e.g. `merged.layers.0.self_attn.q_proj`.

    Each is what its layer makes of the identity, so that a quantised layer has one too.
    """
    names: Iterable[str] = read_safetensors(folder / EXPECTED) if (folder / EXPECTED).is_file() else ()
    layers = {_merged_name(name): layer for name, layer in family.language_model.model.named_modules()}
    for name in names:
        layer = layers.get(_merged_name(name)) if name.startswith("merged") else None
        if layer is not None:
            identity = torch.eye(layer.in_features, dtype=family.dtype, device=family.device)
            yield Stage(name=name, tensor=layer(identity).T, is_of_language_model=True)


def _merged_name(name: str) -> tuple[str, ...]:
    """Return what all spellings of a matrix's name share, e.g. (`0`, `q_proj`)."""
    return tuple(re.findall(r"(?<=layers[._])\d+|[a-z]+_proj", name))

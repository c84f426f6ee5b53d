"""Runs a model without a server: encodes video files and answers conversations in one process."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from model.clip_encoder import encode_clips
from model.engine.engine import Engine, EngineConfig
from model.engine.output import Output
from model.engine.sampling_params import SamplingParams
from model.family import EncodedClip, Family, build_condition, build_prompt
from model.text.conversation import Clip, Conversation
from model.video.sampling import sample_clip
from model.video.spec import FrameSpec, VideoLimits
from model.weights import WeightsError


def watch(
    family: Family, path: Path, limits: VideoLimits | None = None, *, frames: FrameSpec | None = None
) -> tuple[Clip, EncodedClip]:
    """Decode, sample and encode a video file; `frames` replaces the family's own frame spec.

    The features are in half precision, as in the service's cache. Their identity is the file's SHA-256, with the
    frame spec if it is not the family's own.

    Raises:
        VideoError: the file cannot be decoded, or exceeds the limits.
        InvalidFrameSpec: the model cannot take so many frames.
        WeightsError: the encoder gives values that are not finite.
    """
    assert family.inputs is not None, "the model sees videos"
    inputs = family.inputs if frames is None else replace(family.inputs, frames=frames)
    sampled = sample_clip(path, inputs, limits)
    [features] = encode_clips(family, [sampled.inputs])
    if features is None:
        raise WeightsError("The model cannot encode this video; its weights are damaged.")
    identity = hashlib.sha256(path.read_bytes()).hexdigest() + ("" if inputs == family.inputs else f" {inputs.frames}")
    clip = Clip(frame_indices=sampled.indices, fps=sampled.facts.fps, parts=frozenset(features))
    return clip, EncodedClip({name: torch.from_numpy(part) for name, part in features.items()}, identity)


class Offline:
    """A loaded family, and an engine for its language model."""

    def __init__(self, family: Family, *, max_num_seqs: int = 16) -> None:
        self.family = family
        config = EngineConfig(
            max_model_len=family.max_model_len, max_num_seqs=max_num_seqs, condition_shapes=family.condition_shapes
        )
        self.engine = Engine(family.language_model, family.tokenizer, config)

    def add(
        self,
        request_id: str,
        conversation: Conversation,
        clips: Sequence[EncodedClip],
        params: SamplingParams | None = None,
    ) -> None:
        """Queue a conversation's next answer. The template's stop strings apply in addition to those of `params`.

        A conversation with a model that sees no videos has no clips.

        Raises:
            PromptTooLong: the prompt leaves no positions for an answer.
        """
        params = params or self.family.default_sampling
        params = replace(params, stop=tuple(dict.fromkeys((*self.family.template.stop, *params.stop))))
        prompt = build_prompt(self.family, conversation, clips)
        self.engine.add_request(request_id, prompt, params, condition=build_condition(self.family, clips))

    def outputs(self) -> Iterator[Output]:
        """Run the engine until it has no work left, and yield the outputs of its steps."""
        while self.engine.has_work:
            yield from self.engine.step()

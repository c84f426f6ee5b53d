"""Runs a model without a server: encodes video files and answers conversations in one process."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from model.engine.engine import Engine, EngineConfig
from model.engine.output import Output
from model.engine.sampling_params import SamplingParams
from model.family import EncodedClip, Family, build_prompt
from model.text.conversation import Clip, Conversation
from model.video.pixels import normalize, resize
from model.video.reader import open_video
from model.video.spec import FrameSpec, VideoLimits


def watch(
    family: Family, path: Path, limits: VideoLimits | None = None, *, frames: FrameSpec | None = None
) -> tuple[Clip, EncodedClip]:
    """Decode, sample and encode a video file; `frames` replaces the family's own frame spec.

    The features are in half precision, as in the service's cache. Their identity is the file's SHA-256, with the
    frame spec if it is not the family's own.

    Raises:
        VideoError: the file cannot be decoded, or exceeds the limits.
    """
    with open_video(path, limits or VideoLimits()) as video:
        spec = frames or family.frame_spec
        shown = list(video.frames(spec))
        fps = video.facts.fps
    pixels = normalize(np.stack([resize(frame.rgb, family.pixel_spec) for frame in shown]), family.pixel_spec)
    features = family.encode(torch.from_numpy(pixels)[None])[0].half()
    identity = hashlib.sha256(path.read_bytes()).hexdigest() + ("" if spec == family.frame_spec else f" {spec}")
    return Clip(frame_indices=tuple(frame.index for frame in shown), fps=fps), EncodedClip(features, identity)


class Offline:
    """A loaded family, and an engine for its language model."""

    def __init__(self, family: Family, *, max_num_seqs: int = 16) -> None:
        self.family = family
        config = EngineConfig(max_model_len=family.max_model_len, max_num_seqs=max_num_seqs)
        self.engine = Engine(family.language_model, family.tokenizer, config)

    def add(
        self,
        request_id: str,
        conversation: Conversation,
        clips: Sequence[EncodedClip],
        params: SamplingParams | None = None,
    ) -> None:
        """Queue a conversation's next answer. The template's stop strings apply in addition to those of `params`.

        Raises:
            PromptTooLong: the prompt leaves no positions for an answer.
        """
        params = params or self.family.default_sampling
        params = replace(params, stop=tuple(dict.fromkeys((*self.family.template.stop, *params.stop))))
        self.engine.add_request(request_id, build_prompt(self.family, conversation, clips), params)

    def outputs(self) -> Iterator[Output]:
        """Run the engine until it has no work left, and yield the outputs of its steps."""
        while self.engine.has_work:
            yield from self.engine.step()

"""The clips that wait for the encoder of a worker, encoded in batches. Runs in the worker process; imports torch."""

import time
from collections.abc import Callable

import numpy as np
import structlog

from model.clip_encoder import encode_clips
from model.family import Family
from model.features import Features, pack
from model.video.pixels import Levels
from model.weights import WeightsError
from service.observability import tracing
from service.workers.protocol import Encode, Encoded, Refused, Report

_log = structlog.get_logger(__name__)


class EncodeQueue:
    """Encodes waiting clips of one shape together, up to `max_num_batched_frames` frames in a batch."""

    def __init__(self, family: Family, *, max_num_batched_frames: int, report: Callable[[Report], None]) -> None:
        self._family = family
        self._max_num_batched_frames = max_num_batched_frames
        self._report = report
        self._clips: list[Encode] = []

    def __len__(self) -> int:
        return len(self._clips)

    def add(self, clip: Encode) -> None:
        """Add a clip to the queue."""
        self._clips.append(clip)

    def encode_batch(self, *, max_clips: int | None) -> None:
        """Encode the clip that has waited longest, together with others of its shape; report each result.

        `max_clips` is a limit besides the frame limit. A batch has at least one clip; without clips nothing happens.
        """
        if self._clips:
            self._encode(self._next_batch(max_clips))

    def warm_up(self) -> Features:
        """Encode a black clip, so that later ones find warm caches; return its features.

        Raises:
            WeightsError: the model cannot encode it.
        """
        inputs = self._family.inputs
        assert inputs is not None, "the model sees videos"
        black = np.zeros(inputs.pixels.shape(inputs.frames.count), dtype=inputs.pixels.dtype)
        [features] = encode_clips(self._family, [black])
        if features is None:
            raise WeightsError("The model cannot encode a black clip; its weights are damaged.")
        return features

    def _next_batch(self, max_clips: int | None) -> list[Encode]:
        shape = self._clips[0].shape
        num_clips = max(1, self._max_num_batched_frames // max(1, shape[0]))
        if max_clips is not None:
            num_clips = min(num_clips, max_clips)
        batch = [clip for clip in self._clips if clip.shape == shape][:num_clips]
        job_ids = {clip.job_id for clip in batch}
        self._clips = [clip for clip in self._clips if clip.job_id not in job_ids]
        return batch

    def _encode(self, batch: list[Encode]) -> None:
        start = time.perf_counter()
        frames = {clip.job_id: array for clip in batch if (array := self._frames(clip)) is not None}
        features = dict(zip(frames, encode_clips(self._family, list(frames.values())) if frames else (), strict=True))
        batch_seconds = time.perf_counter() - start
        seconds = batch_seconds / len(batch)
        for clip in batch:
            encoded = features.get(clip.job_id)
            if encoded is None:
                self._report(Refused(job_id=clip.job_id, code="encode_failed", message="The video cannot be encoded."))
                continue
            blob = pack(encoded, key=clip.key, frame_indices=clip.frame_indices, timestamps=clip.timestamps)
            self._report(Encoded(job_id=clip.job_id, blob=blob, seconds=seconds, num_batched_clips=len(batch)))
            if clip.context.traceparent is not None:
                attributes = {"reeltalk.batched_clips": len(batch)}
                tracing.record("encoder", attributes, seconds=batch_seconds, parent=clip.context.traceparent)
            encode_ms = round(seconds * 1000, 1)
            _log.info("clip_encoded", **clip.context.ids, encode_ms=encode_ms, num_batched_clips=len(batch))

    def _frames(self, clip: Encode) -> Levels | None:
        """The clip's frames as an array; None if the number of bytes does not match its shape."""
        assert self._family.inputs is not None, "the model sees videos"
        try:
            return np.frombuffer(clip.frames, dtype=self._family.inputs.pixels.dtype).reshape(clip.shape)
        except ValueError:
            _log.exception("clip_refused", **clip.context.ids)
            return None

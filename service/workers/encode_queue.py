"""The clips that wait for the encoder of a worker, encoded in batches. Runs in the worker process; imports torch."""

import time
from collections.abc import Callable

import numpy as np
import structlog

from model.clip_encoder import encode_clips
from model.family import Family
from model.features import Features, pack
from model.video.inputs import ClipInputs
from model.weights import WeightsError
from service.observability import tracing
from service.workers.protocol import Encode, Encoded, Refused, Report

_log = structlog.get_logger(__name__)


class EncodeQueue:
    """Encodes waiting clips of one shape together, up to `max_num_batched_frames` frames in a batch.

    Clips with and without sound, or with sound of different lengths, are of different shapes.
    """

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
        """Encode a black, silent clip, so that later ones find warm caches; return its features.

        Raises:
            WeightsError: the model cannot encode it.
        """
        inputs = self._family.inputs
        assert inputs is not None, "the model sees videos"
        black = np.zeros(inputs.pixels.shape(inputs.frames.count), dtype=inputs.pixels.dtype)
        silence = None
        if inputs.sound is not None:
            silence = np.zeros((inputs.sound.count, inputs.sound.max_samples), dtype=np.float32)
        [features] = encode_clips(self._family, [ClipInputs(black, silence)])
        if features is None:
            raise WeightsError("The model cannot encode a black clip; its weights are damaged.")
        return features

    def _next_batch(self, max_clips: int | None) -> list[Encode]:
        first = _shape(self._clips[0])
        num_clips = max(1, self._max_num_batched_frames // max(1, self._clips[0].shape[0]))
        if max_clips is not None:
            num_clips = min(num_clips, max_clips)
        batch = [clip for clip in self._clips if _shape(clip) == first][:num_clips]
        job_ids = {clip.job_id for clip in batch}
        self._clips = [clip for clip in self._clips if clip.job_id not in job_ids]
        return batch

    def _encode(self, batch: list[Encode]) -> None:
        start = time.perf_counter()
        inputs = {clip.job_id: arrays for clip in batch if (arrays := self._inputs(clip)) is not None}
        features = dict(zip(inputs, encode_clips(self._family, list(inputs.values())) if inputs else (), strict=True))
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

    def _inputs(self, clip: Encode) -> ClipInputs | None:
        """The clip's frames and sound as arrays; None if the number of bytes does not match their shapes."""
        inputs = self._family.inputs
        assert inputs is not None, "the model sees videos"
        try:
            frames = np.frombuffer(clip.frames, dtype=inputs.pixels.dtype).reshape(clip.shape)
            if clip.sound is None or inputs.sound is None:
                return ClipInputs(frames)
            sound = np.frombuffer(clip.sound, dtype=np.float32).reshape(inputs.sound.count, -1)
            return ClipInputs(frames, sound)
        except ValueError:
            _log.exception("clip_refused", **clip.context.ids)
            return None


def _shape(clip: Encode) -> tuple[int, ...]:
    """What the clips of a batch have in common: the shape of the frames, and the bytes of sound."""
    return *clip.shape, len(clip.sound or b"")

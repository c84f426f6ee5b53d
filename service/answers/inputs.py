"""The videos of a conversation as input of a generation: features, clips for the prompt, sampled frames."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from model.features import PackedFeatures
from model.text.conversation import Clip, Conversation, Turn
from service.answers.generation import Generation
from service.store.records import FrameRequest, SampledFrame, VideoFrames, VideoRecord
from service.store.videos import VideoStore
from service.videos.preparation import Preparation
from service.videos.progress import PreparationProgress
from service.workers.protocol import Generate


@dataclass(frozen=True, kw_only=True, slots=True)
class VideoInputs:
    """Videos whose features are ready, in the order of the conversation."""

    clips: tuple[Clip, ...]
    """What the prompt says about each video."""
    features: tuple[bytes, ...]
    feature_keys: tuple[str, ...]
    frames: tuple[VideoFrames, ...]
    """The frames that the answer is based on."""

    def command(
        self,
        generation: Generation,
        *,
        tenant: str,
        system: str,
        turns: tuple[Turn, ...],
        priority: int,
        output_token_ids: tuple[int, ...] = (),
    ) -> Generate:
        """Build the job that generates an answer about these videos."""
        return Generate(
            job_id=generation.job_id,
            conversation=Conversation(clips=self.clips, turns=turns, system=system),
            features=self.features,
            feature_keys=self.feature_keys,
            cache_salt=tenant,
            params=generation.params,
            output_token_ids=output_token_ids,
            priority=priority,
        )


async def prepare_videos(
    preparation: Preparation,
    store: VideoStore,
    tenant: str,
    videos: Sequence[VideoRecord],
    frames: FrameRequest,
    *,
    on_progress: Callable[[PreparationProgress], None] | None = None,
) -> VideoInputs:
    """Get the features of all videos, from the cache or computed now.

    Raises:
        ServiceError: a video cannot be used, or its file is gone, or a part of the service failed.
    """
    prepared = [await preparation.ensure(tenant, video, frames, on_progress=on_progress) for video in videos]
    features = [packed for _, packed in prepared]
    rates = [await _fps(store, tenant, video) for video in videos]
    return VideoInputs(
        clips=tuple(
            Clip(frame_indices=packed.frame_indices, fps=fps, parts=packed.parts)
            for packed, fps in zip(features, rates, strict=True)
        ),
        features=tuple(packed.blob for packed in features),
        feature_keys=tuple(key for key, _ in prepared),
        frames=tuple(_sampled(video, packed) for video, packed in zip(videos, features, strict=True)),
    )


async def _fps(store: VideoStore, tenant: str, video: VideoRecord) -> float:
    """The frame rate; a video that was accepted before it was probed is read again."""
    if video.fps is None:
        video = await store.get(tenant, video.id) or video
    return video.fps or 1.0


def _sampled(video: VideoRecord, features: PackedFeatures) -> VideoFrames:
    return VideoFrames(
        video_id=video.id,
        frames=tuple(
            SampledFrame(index=index, timestamp=timestamp)
            for index, timestamp in zip(features.frame_indices, features.timestamps, strict=True)
        ),
    )

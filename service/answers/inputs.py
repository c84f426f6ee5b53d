"""The videos of a conversation as input of a generation: features, clips for the prompt, sampled frames."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from model.text.conversation import Clip, Conversation, Turn
from service.answers.generation import Generation
from service.answers.moments import VideoTimeAxis, video_time_axis
from service.store.records import FrameRequest, VideoFrames, VideoRecord
from service.store.videos import VideoStore
from service.videos.computation import sampled_frames
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
    time_axis: VideoTimeAxis | None = None
    """The axis on which the answer names times."""

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
    model: str,
    on_progress: Callable[[PreparationProgress], None] | None = None,
) -> VideoInputs:
    """Get the features that a model needs of all videos, from the cache or computed now.

    Raises:
        ServiceError: a video cannot be used, or its file is gone, or a part of the service failed.
    """
    prepared = [
        await preparation.ensure(tenant, video, frames, model=model, on_progress=on_progress) for video in videos
    ]
    features = [packed for _, packed in prepared]
    probed = [await _probed(store, tenant, video) for video in videos]
    num_positions = (await preparation.info(model)).time_axis if videos else None
    return VideoInputs(
        clips=tuple(
            Clip(frame_indices=packed.frame_indices, fps=video.fps or 1.0, parts=packed.parts)
            for packed, video in zip(features, probed, strict=True)
        ),
        features=tuple(packed.blob for packed in features),
        feature_keys=tuple(key for key, _ in prepared),
        frames=tuple(
            VideoFrames(video_id=video.id, frames=sampled_frames(packed.frame_indices, packed.timestamps))
            for video, packed in zip(videos, features, strict=True)
        ),
        time_axis=video_time_axis(probed, frames, num_positions=num_positions),
    )


async def _probed(store: VideoStore, tenant: str, video: VideoRecord) -> VideoRecord:
    """The record with its duration and frame rate; one that was accepted before it was probed is read again."""
    if video.fps is None:
        video = await store.get(tenant, video.id) or video
    return video

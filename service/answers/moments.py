"""The moments that an answer names, on the time axis of the first video of its conversation."""

from collections.abc import Sequence
from dataclasses import dataclass

from model.moments import TimeAxis, find_moments
from service.store.records import FrameRequest, Moment, VideoRecord


@dataclass(frozen=True, kw_only=True, slots=True)
class VideoTimeAxis:
    """A model's time axis over the sampled interval of a video."""

    video_id: str
    axis: TimeAxis

    def moments_in(self, text: str) -> tuple[Moment, ...]:
        """The moments of the video that an answer's text names, in the order of the text."""
        return tuple(
            Moment(
                video_id=self.video_id,
                start=found.start,
                end=found.end,
                text_start=found.text_start,
                text_end=found.text_end,
            )
            for found in find_moments(text, self.axis)
        )


def video_time_axis(
    videos: Sequence[VideoRecord], frames: FrameRequest, *, num_positions: int | None
) -> VideoTimeAxis | None:
    """The time axis of a conversation; None for a model without one (`num_positions` is None) and without a video.

    If there are several videos, an answer does not say which one it means; the first one is assumed.
    """
    if num_positions is None or not videos or videos[0].duration is None:
        return None
    axis = TimeAxis.over(num_positions, duration=videos[0].duration, start=frames.start, end=frames.end)
    return VideoTimeAxis(video_id=videos[0].id, axis=axis)

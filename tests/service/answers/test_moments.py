"""The time axis of a conversation covers the sampled interval of its first video."""

import pytest

from service.answers.moments import video_time_axis
from service.store.records import FrameRequest
from tests.service.answers.conversations import video_record

VIDEO = video_record(duration=20.0)
OTHER = video_record(id="vid_" + "0" * 32, duration=7.0)


@pytest.mark.parametrize(
    ("frames", "seconds"),
    [
        (FrameRequest(), (10.0, 20.0)),
        (FrameRequest(start=10.0), (15.0, 20.0)),
        (FrameRequest(end=10.0), (5.0, 10.0)),
        (FrameRequest(start=4.0, end=6.0), (5.0, 6.0)),
        (FrameRequest(end=100.0), (10.0, 20.0)),
        (FrameRequest(start=30.0), (20.0, 20.0)),
    ],
)
def test_positions_divide_the_sampled_interval(frames: FrameRequest, seconds: tuple[float, float]) -> None:
    axis = video_time_axis([VIDEO], frames, num_positions=100)
    assert axis is not None
    [moment] = axis.moments_in("It rests from 50 to 99.")
    assert (moment.start, moment.end) == pytest.approx(seconds)
    assert (moment.video_id, moment.text_start, moment.text_end) == (VIDEO.id, 9, 22)


def test_of_two_videos_the_first_is_meant() -> None:
    axis = video_time_axis([OTHER, VIDEO], FrameRequest(), num_positions=100)
    assert axis is not None
    [moment] = axis.moments_in("from 00 to 99")
    assert (moment.video_id, moment.end) == (OTHER.id, 7.0)


def test_without_an_axis_a_video_or_its_duration_there_are_no_moments() -> None:
    assert video_time_axis([VIDEO], FrameRequest(), num_positions=None) is None
    assert video_time_axis([], FrameRequest(), num_positions=100) is None
    assert video_time_axis([video_record()], FrameRequest(), num_positions=100) is None

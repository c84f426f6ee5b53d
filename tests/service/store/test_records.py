"""Records have the form in which earlier releases read and wrote them."""

import json

from service.store.records import AnswerRecord, AudioTrack, FrameRequest, MessageRecord, Moment, VideoRecord
from tests.service.answers.conversations import answer_record

MESSAGE = MessageRecord(id="msg_1", role="assistant", content="From 10 to 14.", created_at=1.0, answer_id="ans_1")
MOMENT = Moment(video_id="vid_1", start=2.0, end=3.0, text_start=0, text_end=13)


def test_a_message_of_an_earlier_release_has_no_moments() -> None:
    written = {"id": "msg_1", "role": "assistant", "content": "Yes.", "created_at": 1.0, "answer_id": "ans_1"}
    assert MessageRecord.model_validate_json(json.dumps(written)).moments is None


def test_a_message_without_a_time_axis_can_be_read_by_an_earlier_release() -> None:
    answer = answer_record().model_copy(update={"message": MESSAGE})
    assert "moments" not in json.loads(MESSAGE.model_dump_json())
    assert "moments" not in json.loads(answer.model_dump_json())["message"]
    assert AnswerRecord.model_validate_json(answer.model_dump_json()) == answer


def test_moments_are_stored_also_if_an_answer_names_none() -> None:
    for moments in ((), (MOMENT,)):
        message = MESSAGE.model_copy(update={"moments": moments})
        assert MessageRecord.model_validate_json(message.model_dump_json()) == message


def test_fields_that_a_later_release_adds_are_ignored() -> None:
    assert FrameRequest.model_validate_json('{"count": 4, "colour": "red"}') == FrameRequest(count=4)


def test_frames_with_sound_can_be_read_by_an_earlier_release_and_the_wish_for_none_is_kept() -> None:
    assert "audio" not in json.loads(FrameRequest(count=4).model_dump_json())
    silent = FrameRequest(audio=False)
    assert FrameRequest.model_validate_json(silent.model_dump_json()) == silent


def test_a_video_without_facts_about_its_sound_can_be_read_by_an_earlier_release() -> None:
    video = VideoRecord(id="vid_1", sha256="ab", bytes=1, filename="a.mp4", content_type="video/mp4", created_at=1.0)
    assert not {"audio", "audio_error"} & json.loads(video.model_dump_json()).keys()
    heard = video.model_copy(update={"audio": AudioTrack(codec="aac", rate=44100, channels=2)})
    assert VideoRecord.model_validate_json(heard.model_dump_json()) == heard

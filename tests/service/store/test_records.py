"""Records have the form in which earlier releases read and wrote them."""

import json

from service.store.records import AnswerRecord, MessageRecord, Moment
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

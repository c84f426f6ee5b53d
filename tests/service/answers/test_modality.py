"""A conversation has videos if the model sees videos, and none if it does not."""

from dataclasses import replace

import pytest

from service.answers.acceptance import check_modality
from service.errors import InvalidRequest
from service.workers.protocol import ModelInfo
from tests.service.workers.test_dispatcher import INFO

TEXT = replace(INFO, name="reader", inputs=None, parts=(), num_video_tokens=0)


def test_a_model_tells_what_its_conversations_are_about() -> None:
    assert (INFO.modalities, TEXT.modalities) == (("video",), ("text",))


def test_conversations_that_fit_their_model_are_accepted() -> None:
    check_modality(INFO, has_videos=True, param="video_ids")
    check_modality(TEXT, has_videos=False, param="video_ids")


@pytest.mark.parametrize(
    ("info", "code", "message"),
    [
        (INFO, "missing_field", "answers questions about videos; name at least one"),
        (TEXT, "unsupported_value", "The model 'reader' sees no videos; ask it without one."),
    ],
)
def test_others_are_refused_with_the_field_that_names_the_videos(info: ModelInfo, code: str, message: str) -> None:
    with pytest.raises(InvalidRequest, match=message) as refused:
        check_modality(info, has_videos=info is TEXT, param="video_ids")
    assert (refused.value.status, refused.value.code, refused.value.param) == (422, code, "video_ids")

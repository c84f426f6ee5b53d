"""Every error code has one class and status, also after it went through a record, a worker's reply or a log."""

from collections.abc import Iterator
from typing import get_args

import orjson
import pytest

from model.video.spec import VideoErrorCode
from service import errors
from service.errors import (
    CODES,
    Fault,
    Gone,
    InternalError,
    InvalidRequest,
    NotFound,
    Overloaded,
    ServiceError,
    StorageUnavailable,
    Unavailable,
    UnsupportedMedia,
    fault_of,
    from_code,
)

STORED = [
    Gone("video_gone", "…"),
    InternalError("answer_lost", "…"),
    InternalError("encode_failed", "…"),
    InternalError("engine_error", "…"),
    InternalError("internal_error", "…"),
    InternalError("worker_lost", "…"),
    InvalidRequest("context_length_exceeded", "…"),
    InvalidRequest("decode_crashed", "…"),
    InvalidRequest("decode_timeout", "…"),
    InvalidRequest("undecodable", "…"),
    NotFound("video_not_found", "…"),
    Overloaded("deadline_exceeded", "…"),
    Unavailable("decode_unavailable", "…"),
    Unavailable("model_unavailable", "…"),
    StorageUnavailable("media_unavailable", "…"),
    StorageUnavailable("store_unavailable", "…"),
    UnsupportedMedia("not_a_video", "…"),
]


def kinds(root: type[ServiceError] = ServiceError) -> Iterator[type[ServiceError]]:
    for kind in root.__subclasses__():
        yield kind
        yield from kinds(kind)


@pytest.mark.parametrize("error", STORED, ids=lambda error: error.code)
def test_an_error_rebuilt_from_its_code_is_the_same_error(error: ServiceError) -> None:
    again = from_code(error.code, error.message)
    assert type(again) is type(error)
    assert (again.status, again.type, again.retry_after) == (error.status, error.type, error.retry_after)


def test_an_error_with_text_that_utf_8_cannot_hold_is_sent_without_it() -> None:
    error = InvalidRequest("invalid_value", "\udce4 and \ud800 are no é.", param="a\ud800")
    sent = orjson.loads(orjson.dumps(error.envelope()))["error"]
    assert (sent["message"], sent["param"]) == ("? and ? are no é.", "a?")
    assert str(error) == sent["message"]


@pytest.mark.parametrize("code", CODES)
def test_every_code_keeps_its_status_through_the_store_and_the_pipe(code: str) -> None:
    error = from_code(code, "…")
    assert (error.code, type(error)) == (code, CODES[code].error)
    assert (error.status, error.retry_after, error.param) == (
        CODES[code].status,
        CODES[code].retry_after,
        CODES[code].param,
    )


def test_a_code_of_another_release_is_an_internal_error() -> None:
    error = from_code("invented_tomorrow", "It broke.")
    assert (error.code, error.status, error.message) == ("internal_error", 500, "It broke.")
    assert fault_of("invented_tomorrow") is Fault.SERVER


def test_an_error_with_a_wrong_code_cannot_be_made() -> None:
    with pytest.raises(KeyError):
        InvalidRequest("no_such_code", "…")
    with pytest.raises(AssertionError):
        InvalidRequest("video_gone", "…")


@pytest.mark.parametrize("code", get_args(VideoErrorCode))
def test_the_client_must_mend_a_bad_video(code: str) -> None:
    assert from_code(code, "…").status in {415, 422}
    assert fault_of(code) is Fault.CLIENT


@pytest.mark.parametrize("code", CODES)
def test_the_fault_agrees_with_the_status(code: str) -> None:
    assert (CODES[code].fault is Fault.CLIENT) == (CODES[code].status < 500)


def test_the_drawn_tree_is_the_tree() -> None:
    drawn = {
        words[0]: int(words[1])
        for line in (errors.__doc__ or "").splitlines()
        if "-- " in line and (words := line.rpartition("-- ")[2].split())
    }
    assert drawn == {kind.__name__: kind.default_status for kind in kinds()}


@pytest.mark.parametrize("kind", list(kinds()), ids=lambda kind: kind.__name__)
def test_every_error_that_passes_with_time_carries_retry_after(kind: type[ServiceError]) -> None:
    assert (kind.default_retry_after is not None) == (kind.default_status in {423, 429, 503})


def test_the_envelope_has_the_four_fields() -> None:
    error = InvalidRequest("too_many_frames", "At most 64 frames are sampled.", param="frames.count")
    assert error.envelope() == {
        "error": {
            "message": "At most 64 frames are sampled.",
            "type": "invalid_request_error",
            "param": "frames.count",
            "code": "too_many_frames",
        }
    }

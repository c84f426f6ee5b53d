"""Every error has one place in HTTP, and keeps it on its way through a record, a worker's reply or a log."""

from collections.abc import Iterator
from typing import get_args

import pytest

from model.video.spec import VideoErrorCode
from service import errors
from service.errors import (
    Gone,
    InternalError,
    InvalidRequest,
    Overloaded,
    ServiceError,
    Unavailable,
    UnsupportedMedia,
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
    Overloaded("deadline_exceeded", "…"),
    Unavailable("decode_unavailable", "…"),
    Unavailable("model_unavailable", "…"),
    Unavailable("store_unavailable", "…"),
    UnsupportedMedia("not_a_video", "…"),
]


def kinds(root: type[ServiceError] = ServiceError) -> Iterator[type[ServiceError]]:
    for kind in root.__subclasses__():
        yield kind
        yield from kinds(kind)


@pytest.mark.parametrize("error", STORED, ids=lambda error: error.code)
def test_an_error_that_was_stored_as_its_code_comes_back_as_what_it_was(error: ServiceError) -> None:
    again = from_code(error.code, error.message)
    assert type(again) is type(error)
    assert (again.status, again.type, again.retry_after) == (error.status, error.type, error.retry_after)


@pytest.mark.parametrize("code", get_args(VideoErrorCode))
def test_a_video_at_fault_is_the_client_s_to_mend(code: str) -> None:
    assert from_code(code, "…").status in {415, 422}


def test_the_drawn_tree_is_the_tree() -> None:
    drawn = {
        words[0].lstrip("|`-"): int(words[1])
        for line in (errors.__doc__ or "").splitlines()
        if line.startswith(("|--", "`--")) and (words := line.replace("-- ", "").split())
    }
    assert drawn == {kind.__name__: kind.status for kind in kinds()}


@pytest.mark.parametrize("kind", list(kinds()), ids=lambda kind: kind.__name__)
def test_whoever_may_try_again_is_told_when(kind: type[ServiceError]) -> None:
    assert (kind.retry_after is not None) == (kind.status in {423, 429, 503})


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

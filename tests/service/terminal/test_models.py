"""The models of a service are listed, and a model that does not fit a conversation is refused in one sentence."""

import json
from typing import Any

import pytest

from service.terminal.chats import ServiceChat
from service.terminal.failures import Exit, Failure
from service.terminal.models import check_model, print_models
from tests.service.terminal.stub import Stub, says

TINY = {"id": "tiny", "family": "videochat", "max_model_len": 512}  # as an earlier release describes it
VTIMELLM = {
    "id": "vtimellm-7b",
    "family": "vtimellm",
    "max_model_len": 4096,
    "state": "loading",
    "is_default": True,
    "modalities": ["video"],
    "frames": {"default": 100, "min": 100, "max": 100, "rule": "linspace"},
    "time_axis": 100,
}
MOBILLAMA = {
    "id": "mobillama-05b",
    "family": "mobillama",
    "max_model_len": 2048,
    "state": "broken",
    "is_default": False,
    "modalities": ["text"],
    "frames": None,
    "time_axis": None,
}
UNLOADED = {
    "id": "unknown",
    "family": "vtimellm",
    "max_model_len": None,
    "state": "loading",
    "is_default": False,
    "modalities": None,
    "frames": None,
    "time_axis": None,
}
SESSION = "ses_" + "0" * 32


def listing(*models: dict[str, Any]) -> Any:
    return says({"object": "list", "data": list(models)})


def test_a_table_has_the_state_of_every_model(capsys: pytest.CaptureFixture[str]) -> None:
    print_models(Stub([listing(VTIMELLM, MOBILLAMA, TINY, UNLOADED)]).client, as_json=False)
    titles, *rows = capsys.readouterr().out.splitlines()
    assert titles.split() == ["model", "state", "family", "sees", "frames", "times", "context"]
    assert [" ".join(row.split()) for row in rows] == [
        "vtimellm-7b (default) loading vtimellm videos 100 (100 to 100) of 100 positions 4096",
        "mobillama-05b broken mobillama text 2048",
        "tiny ready videochat videos 512",
        "unknown loading vtimellm",
    ]


def test_as_json_the_reply_of_the_service_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    print_models(Stub([listing(VTIMELLM, TINY)]).client, as_json=True)
    assert json.loads(capsys.readouterr().out) == {"object": "list", "data": [VTIMELLM, TINY]}


@pytest.mark.parametrize(
    ("name", "has_video"),
    [("tiny", True), ("vtimellm-7b", True), ("mobillama-05b", False), ("unknown", True), ("unknown", False)],
)
def test_a_model_that_fits_is_accepted(name: str, *, has_video: bool) -> None:
    check_model(Stub([listing(VTIMELLM, MOBILLAMA, TINY, UNLOADED)]).client, name, has_video=has_video)


@pytest.mark.parametrize(
    ("name", "has_video", "status", "sentence"),
    [
        ("large", True, Exit.NOT_FOUND, "The service does not serve large; it serves mobillama-05b, tiny."),
        ("", True, Exit.USAGE, "--model needs a name; `reeltalk models` lists those of the service."),
        ("mobillama-05b", True, Exit.USAGE, "mobillama-05b cannot see videos; omit the VIDEO."),
        ("tiny", False, Exit.USAGE, "tiny answers questions about a video; name a VIDEO."),
    ],
)
def test_a_model_that_does_not_fit_is_refused(name: str, *, has_video: bool, status: Exit, sentence: str) -> None:
    with pytest.raises(Failure) as refused:
        check_model(Stub([listing(MOBILLAMA, TINY)]).client, name, has_video=has_video)
    assert (refused.value.status, refused.value.message) == (status, sentence)


def test_a_chat_goes_on_with_another_model_on_the_same_video_and_frames() -> None:
    session = {
        "id": SESSION,
        "video_ids": ["vid_1"],
        "model": "tiny",
        "system": "Be brief.",
        "frames": {"count": 4, "start": None, "end": None},
    }
    stub = Stub([says(session), listing(TINY, VTIMELLM), says({"id": "ses_2"}), says({"model": "vtimellm-7b"})])
    chat = ServiceChat(stub.client, SESSION, {})
    chat.change_model("vtimellm-7b")
    assert chat.model() == "vtimellm-7b"
    assert stub.paths == [
        "GET /v1/sessions/" + SESSION,
        "GET /v1/models",
        "POST /v1/sessions",
        "GET /v1/sessions/ses_2",
    ]
    assert json.loads(stub.requests[2].content) == {
        "video_ids": ["vid_1"],
        "model": "vtimellm-7b",
        "system": "Be brief.",
        "frames": {"count": 4},
    }
    assert chat.resume_options == "--session ses_2"


def test_a_chat_keeps_its_session_if_the_other_model_does_not_fit() -> None:
    session = {"id": SESSION, "video_ids": ["vid_1"], "model": "tiny", "system": "", "frames": {}}
    chat = ServiceChat(Stub([says(session), listing(TINY, MOBILLAMA)]).client, SESSION, {})
    with pytest.raises(Failure, match="cannot see videos"):
        chat.change_model("mobillama-05b")
    assert chat.resume_options == f"--session {SESSION}"

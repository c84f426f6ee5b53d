"""A file is uploaded completely: in one request, or resumably over lost connections."""

import base64
from pathlib import Path

import httpx2
import pytest

from service.terminal import uploading
from service.terminal.failures import Exit, Failure
from tests.service.terminal.stub import Stub, lost, refuses, says

VIDEO = {"id": "vid_1", "status": "ready"}


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    path = tmp_path / "größer.mp4"
    path.write_bytes(bytes(range(256)) * 1024)  # four chunks
    return path


def test_a_small_file_is_one_request_with_its_name_and_length(clip: Path) -> None:
    sent: list[int] = []
    stub = Stub([says(VIDEO, status=201)])
    assert stub.client.upload(clip, on_sent=sent.append) == VIDEO
    [request] = stub.requests
    assert request.url.params["filename"] == "größer.mp4"
    assert request.headers["content-type"] == "video/mp4"
    assert request.content == clip.read_bytes()
    assert sent == [65536, 131072, 196608, 262144]


def test_an_upload_whose_response_is_lost_is_retried_with_the_same_key(clip: Path) -> None:
    stub = Stub([lost, says(VIDEO)])
    stub.client.upload(clip)
    assert stub.requests[1].content == clip.read_bytes()
    keys = stub.header("idempotency-key")
    assert keys[0] is not None
    assert len(set(keys)) == 1


class Tus:
    """A server of resumable uploads that loses the connection after the given numbers of bytes."""

    def __init__(self, *, breaks: list[int]) -> None:
        self.breaks = breaks
        self.kept = b""
        self.length = 0
        self.name = ""

    def reply(self, request: httpx2.Request) -> httpx2.Response:
        match request.method:
            case "POST":
                self.length = int(request.headers["upload-length"])
                named = request.headers["upload-metadata"].split(",")[0].split()[1]
                self.name = base64.b64decode(named).decode()
                return httpx2.Response(201, headers={"Location": "/somewhere/v1/uploads/upl_1"})
            case "PATCH":
                assert int(request.headers["upload-offset"]) == len(self.kept)
                room = self.breaks.pop(0) if self.breaks else self.length
                self.kept += request.content[:room]
                if room < len(request.content):
                    raise httpx2.WriteError("the line is lost", request=request)
            case "GET":
                return httpx2.Response(200, json=VIDEO)
        done = {"Reeltalk-Video-Id": "vid_1"} if len(self.kept) == self.length else {}
        return httpx2.Response(204, headers={"Upload-Offset": str(len(self.kept)), **done})


def test_a_large_upload_continues_at_the_offset_of_the_service(clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uploading, "_LARGE", 1)
    tus = Tus(breaks=[100_000, 0, 50_000])
    stub = Stub([tus.reply] * 12)
    assert stub.client.upload(clip) == VIDEO
    assert tus.kept == clip.read_bytes()
    assert tus.name == "größer.mp4"
    asked = [path.split()[0] for path in stub.paths]
    assert asked == ["POST", "PATCH", "HEAD", "PATCH", "HEAD", "PATCH", "HEAD", "PATCH", "GET"]


def test_a_large_file_is_not_sent_again_if_its_last_response_is_lost(
    clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(uploading, "_LARGE", 1)
    tus = Tus(breaks=[])

    def arrives_but_is_lost(request: httpx2.Request) -> httpx2.Response:
        tus.reply(request)
        return lost(request)

    stub = Stub([tus.reply, arrives_but_is_lost, tus.reply, tus.reply])
    assert stub.client.upload(clip) == VIDEO
    assert [path.split()[0] for path in stub.paths] == ["POST", "PATCH", "HEAD", "GET"]


def test_a_large_file_that_is_not_a_video_is_refused_once(clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uploading, "_LARGE", 1)
    tus = Tus(breaks=[])
    stub = Stub([tus.reply, refuses("not_a_video", "invalid_request_error", 415)])
    with pytest.raises(Failure) as failed:
        stub.client.upload(clip)
    assert failed.value.status is Exit.REFUSED

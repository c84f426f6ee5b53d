"""Resumable uploads survive broken connections and killed replicas; nothing acknowledged is lost."""

import base64
import hashlib
import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
import redis
from tusclient.client import TusClient

from service.commands.demo import SAMPLE
from service.store.redis_server import embedded_redis
from tests.e2e.big_upload import MEGABYTE, TUS, interrupted_upload, padded_video
from tests.e2e.test_tenants import client as client_with
from tests.e2e.test_tenants import make_key
from tests.running import RunningService, eventually, running

PIECE = TUS | {"Content-Type": "application/offset+octet-stream"}
BYTES = SAMPLE.read_bytes()


def code_of(reply: httpx2.Response) -> str:
    code: str = reply.json()["error"]["code"]
    return code


@pytest.fixture
def http(service: RunningService) -> httpx2.Client:
    return service.client


def created(http: httpx2.Client, length: int = len(BYTES), **headers: str) -> str:
    reply = http.post("/v1/uploads", headers=TUS | {"Upload-Length": str(length)} | headers)
    assert reply.status_code == 201, reply.text
    assert reply.headers["Upload-Expires"].endswith("GMT")
    return reply.headers["Location"]


def appended(http: httpx2.Client, url: str, data: bytes, *, offset: int, **headers: str) -> httpx2.Response:
    return http.patch(url, content=data, headers=PIECE | {"Upload-Offset": str(offset)} | headers)


def offset_of(http: httpx2.Client, url: str) -> int:
    reply = http.head(url, headers=TUS)
    assert reply.status_code == 200
    assert reply.headers["Cache-Control"] == "no-store"
    return int(reply.headers["Upload-Offset"])


def test_a_tus_client_uploads_in_pieces_with_checksums_and_it_is_the_video_of_a_plain_upload(
    service: RunningService, http: httpx2.Client
) -> None:
    with SAMPLE.open("rb") as file:
        uploader = TusClient(f"{service.url}/v1/uploads").uploader(
            file_stream=file,
            chunk_size=5000,
            metadata={"filename": "shapes.mp4", "filetype": "video/mp4"},
            upload_checksum=True,
        )
        uploader.upload()
    state = http.head(str(uploader.url), headers=TUS)
    assert state.headers["Upload-Length"] == state.headers["Upload-Offset"] == str(len(BYTES))
    assert "filename c2hhcGVzLm1wNA==" in state.headers["Upload-Metadata"]
    assert state.headers["Reeltalk-Video-Id"] == service.upload(SAMPLE)["id"]


def test_options_lists_the_supported_tus_extensions(http: httpx2.Client) -> None:
    abilities = http.options("/v1/uploads").headers
    assert abilities["Tus-Resumable"] == abilities["Tus-Version"] == "1.0.0"
    assert set(abilities["Tus-Extension"].split(",")) == {
        "creation", "creation-with-upload", "expiration", "checksum", "termination",
    }  # fmt: skip
    assert "sha1" in abilities["Tus-Checksum-Algorithm"].split(",")


def test_the_first_bytes_may_come_with_the_creation(http: httpx2.Client) -> None:
    length = {"Upload-Length": str(len(BYTES))}
    reply = http.post("/v1/uploads", headers=PIECE | length, content=BYTES[:100])
    assert (reply.status_code, reply.headers["Upload-Offset"]) == (201, "100")
    whole = http.post("/v1/uploads", headers=PIECE | length, content=BYTES)
    assert whole.headers["Reeltalk-Video-Id"].startswith("vid_")


def test_a_piece_at_a_wrong_offset_changes_nothing(http: httpx2.Client) -> None:
    url = created(http)
    assert appended(http, url, BYTES[:1000], offset=0).status_code == 204
    refusals: list[tuple[dict[str, Any], int, str]] = [
        ({"data": BYTES[:10], "offset": 0}, 409, "offset_mismatch"),
        ({"data": BYTES[:10], "offset": 1001}, 409, "offset_mismatch"),
        ({"data": BYTES[:10], "offset": 1000, "Upload-Checksum": "sha1 " + "A" * 27 + "="}, 460, "checksum_mismatch"),
        ({"data": BYTES[:10], "offset": 1000, "Upload-Checksum": "crc32 AAAA"}, 422, "invalid_value"),
        ({"data": BYTES[:10], "offset": 1000, "Content-Type": "video/mp4"}, 415, "unsupported_media_type"),
        ({"data": BYTES[:10], "offset": 1000, "Tus-Resumable": "0.2.2"}, 412, "unsupported_version"),
    ]
    for fields, status, code in refusals:
        reply = appended(http, url, **fields)
        assert (reply.status_code, code_of(reply)) == (status, code)
        assert reply.headers["Tus-Resumable"] == "1.0.0"
        assert offset_of(http, url) == 1000
    digest = base64.b64encode(hashlib.sha256(BYTES[1000:]).digest()).decode()
    reply = appended(http, url, BYTES[1000:], offset=1000, **{"Upload-Checksum": f"sha256 {digest}"})
    assert reply.headers["Reeltalk-Video-Id"].startswith("vid_")


def test_more_bytes_than_were_announced_are_refused(http: httpx2.Client) -> None:
    url = created(http, length=10)
    reply = appended(http, url, b"x" * 11, offset=0)
    assert (reply.status_code, code_of(reply)) == (413, "upload_too_large")
    reply = http.post("/v1/uploads", headers=TUS | {"Upload-Length": str(1 << 40)})
    assert (reply.status_code, code_of(reply)) == (413, "upload_too_large")


def test_a_file_that_is_not_a_video_is_refused_with_its_last_piece_and_afterwards(
    http: httpx2.Client,
) -> None:
    url = created(http, length=5)
    reply = appended(http, url, b"hello", offset=0)
    assert (reply.status_code, code_of(reply)) == (415, "not_a_video")
    assert http.head(url, headers=TUS).status_code == 415


def test_a_terminated_upload_is_deleted_with_its_bytes(service: RunningService, http: httpx2.Client) -> None:
    url = created(http)
    appended(http, url, BYTES[:1000], offset=0)
    file = partial_file(service, url)
    assert file.stat().st_size == 1000
    # the method override for clients behind old proxies
    assert http.post(url, headers=TUS | {"X-HTTP-Method-Override": "DELETE"}).status_code == 204
    assert not file.exists()
    assert http.head(url, headers=TUS).status_code == 404
    assert code_of(appended(http, url, BYTES[1000:], offset=1000)) == "upload_not_found"


def partial_file(service: RunningService, url: str) -> Path:
    return service.data_dir / "media" / "partial" / url.rsplit("/", 1)[1]


def test_bytes_that_were_never_acknowledged_do_not_count(service: RunningService, http: httpx2.Client) -> None:
    """A replica that is killed during a request leaves bytes beyond the last acknowledged offset."""
    url = created(http)
    appended(http, url, BYTES[:1000], offset=0)
    with partial_file(service, url).open("ab") as file:
        file.write(b"torn")
    assert offset_of(http, url) == 1000
    reply = appended(http, url, BYTES[1000:], offset=1000)
    assert reply.headers["Reeltalk-Video-Id"] == service.upload(SAMPLE)["id"]


def test_a_complete_upload_becomes_a_video_after_a_crash(service: RunningService, http: httpx2.Client) -> None:
    url = created(http)
    partial_file(service, url).write_bytes(BYTES)
    [key] = [key for key in service.keys_about(url.rsplit("/", 1)[1]) if not key.endswith(":lease")]
    with redis.Redis(unix_socket_path=str(service.data_dir / "redis" / "redis.sock")) as store:
        record = json.loads(str(store.get(key), "utf-8")) | {"offset": len(BYTES)}
        store.set(key, json.dumps(record), ex=60)
    assert http.head(url, headers=TUS).headers["Reeltalk-Video-Id"] == service.upload(SAMPLE)["id"]


def test_broken_connections_lose_no_byte_and_large_files_no_memory(service: RunningService, tmp_path: Path) -> None:
    """A small run of `tests/e2e/big_upload.py`."""
    path = tmp_path / "large.mp4"
    sha256 = padded_video(path, num_bytes=60 * MEGABYTE)
    upload = interrupted_upload(service, path, num_breaks=2)
    assert upload.num_breaks == 2
    assert (upload.video["sha256"], upload.video["status"]) == (sha256, "ready")
    assert upload.peak_over_idle < 40e6


@pytest.fixture
def replicas(tmp_path: Path) -> Iterator[tuple[RunningService, RunningService]]:
    """Two replicas that share Redis and the media directory."""
    with embedded_redis(tmp_path / "redis") as redis:
        shared = {"REELTALK_REDIS_URL": redis, "REELTALK_MEDIA_DIR": str(tmp_path / "media"), "REELTALK_THREADS": "1"}
        with running(tmp_path / "one", **shared) as one, running(tmp_path / "two", **shared) as two:
            yield one, two


def test_an_upload_continues_at_another_replica_after_a_kill(
    replicas: tuple[RunningService, RunningService],
) -> None:
    one, two = replicas
    url = created(one.client)
    assert appended(one.client, url, BYTES[:6000], offset=0).status_code == 204
    children = list(one.children())
    one.process.kill()
    one.process.wait()
    for pid in children:  # its children would otherwise run a moment longer
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
    assert offset_of(two.client, url) == 6000
    reply = appended(two.client, url, BYTES[6000:], offset=6000)
    assert reply.status_code == 204
    video = two.wait_until_processed(reply.headers["Reeltalk-Video-Id"])
    assert (video["sha256"], video["status"]) == (hashlib.sha256(BYTES).hexdigest(), "ready")


def test_a_piece_waits_for_the_one_that_another_request_is_sending(
    replicas: tuple[RunningService, RunningService],
) -> None:
    one, two = replicas
    url = created(one.client)

    def slowly() -> Iterator[bytes]:
        yield BYTES[:1000]
        eventually(lambda: refused() == "upload_busy")

    def refused() -> str:
        reply = appended(two.client, url, BYTES[:10], offset=0)
        assert reply.status_code == 423
        assert "Retry-After" in reply.headers
        return code_of(reply)

    headers = PIECE | {"Upload-Offset": "0"}
    assert one.client.patch(url, content=slowly(), headers=headers).headers["Upload-Offset"] == "1000"
    assert offset_of(two.client, url) == 1000


def test_concurrent_uploads_reserve_their_space(tmp_path: Path) -> None:
    """The space of an upload is reserved when it begins, and released when it is terminated."""
    limit = len(BYTES) * 3 // 2
    _, token = make_key(tmp_path / "data", "small", "--stored-bytes", str(limit))
    with running(tmp_path / "data") as service, client_with(service, token) as http:
        longer = BYTES + (8).to_bytes(4, "big") + b"free"  # a box that players skip

        def is_refused() -> bool:
            reply = http.post("/v1/uploads", headers=TUS | {"Upload-Length": str(len(longer))})
            return (reply.status_code, reply.status_code == 429 and code_of(reply)) == (429, "storage_full")

        ended = created(http)
        assert is_refused()
        assert http.delete(ended, headers=TUS).status_code == 204
        first = created(http)
        video = appended(http, first, BYTES, offset=0).headers["Reeltalk-Video-Id"]
        assert is_refused()
        assert [each["id"] for each in http.get("/v1/videos").json()["data"]] == [video]
        assert http.delete(f"/v1/videos/{video}").status_code == 200
        second = created(http, length=len(longer))
        assert appended(http, second, longer, offset=0).headers["Reeltalk-Video-Id"] != video

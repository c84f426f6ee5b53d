"""Replicas with a bucket for files and a second Redis for features, which may become unavailable."""

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
import pytest
from moto.server import ThreadedMotoServer

from service.store.redis_server import embedded_redis
from tests.clips import h264_mp4
from tests.e2e.fleet import RedisServer
from tests.running import RunningService, eventually, running

BUCKET = "clips"


@dataclass(frozen=True)
class Site:
    """Two replicas without a shared disk."""

    here: RunningService
    there: RunningService
    cache: RedisServer
    s3: Any

    def objects(self) -> list[str]:
        return [each["Key"] for each in self.s3.list_objects_v2(Bucket=BUCKET).get("Contents", ())]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("site")
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    credentials = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "NO_PROXY": "127.0.0.1"}
    with ExitStack() as stack:
        server.start()
        stack.callback(server.stop)
        host, port = server.get_host_and_port()
        endpoint = f"http://{host}:{port}"
        s3 = boto3.client(
            "s3",
            endpoint_url=endpoint,
            region_name="us-east-1",
            aws_access_key_id="test",
            aws_secret_access_key="test",  # noqa: S106 - the fake server accepts any
        )
        s3.create_bucket(Bucket=BUCKET)
        cache = RedisServer(folder / "cache")
        stack.callback(cache.kill)
        cache.wait_until_ready()
        shared = credentials | {
            "REELTALK_REDIS_URL": stack.enter_context(embedded_redis(folder / "shared")),
            "REELTALK_CACHE_REDIS_URL": f"unix://{cache.socket}",
            "REELTALK_MEDIA_URL": f"s3://{BUCKET}/reel?endpoint={endpoint}&region=us-east-1",
        }
        here = stack.enter_context(running(folder / "a", **shared))
        there = stack.enter_context(running(folder / "b", **shared))
        yield Site(here, there, cache, s3)


def test_a_replica_reads_and_deletes_files_that_the_other_stored_in_the_bucket(site: Site, tmp_path: Path) -> None:
    path = h264_mp4(tmp_path / "afar.mp4", frames=51)
    video = site.here.upload(path)
    assert any(name.endswith(video["sha256"]) for name in site.objects())
    assert site.there.client.get(f"/v1/videos/{video['id']}/content").content == path.read_bytes()
    session_id = site.there.client.post(
        "/v1/sessions", json={"video_ids": [video["id"]], "frames": {"count": 4}}
    ).json()["id"]  # these frames are not cached, so the file is decoded again
    assert site.there.ask(session_id, "What is it?", max_tokens=4)["content"]
    assert site.there.metric("reeltalk_video_decode_seconds_count") == 1
    assert site.there.client.delete(f"/v1/videos/{video['id']}").status_code == 200
    assert not [name for name in site.objects() if video["sha256"] in name]
    assert site.here.client.get(f"/v1/videos/{video['id']}").status_code == 404


def test_an_upload_begun_at_one_replica_continues_at_the_other(site: Site, tmp_path: Path) -> None:
    content = h264_mp4(tmp_path / "pieces.mp4", frames=57).read_bytes()
    version, half = {"Tus-Resumable": "1.0.0"}, len(content) // 2
    url = site.here.client.post("/v1/uploads", headers=version | {"Upload-Length": str(len(content))}).headers[
        "Location"
    ]
    for replica, start, piece in ((site.here, 0, content[:half]), (site.there, half, content[half:])):
        headers = version | {"Upload-Offset": str(start), "Content-Type": "application/offset+octet-stream"}
        reply = replica.client.patch(url, content=piece, headers=headers)
        assert (reply.status_code, reply.headers["Upload-Offset"]) == (204, str(start + len(piece)))
        assert any("/partial/" in name for name in site.objects()) == (replica is site.here)
    video_id = site.here.client.head(url, headers=version).headers["Reeltalk-Video-Id"]
    assert site.here.client.get(f"/v1/videos/{video_id}/content").content == content


def test_answers_work_without_the_cache_redis_and_features_are_cached_after_its_return(
    site: Site, tmp_path: Path
) -> None:
    service, errors = site.here, "reeltalk_feature_cache_errors_total"
    encoded, hits = "reeltalk_video_encode_seconds_count", "reeltalk_feature_cache_hits_total"
    session_id = service.open_session(service.upload(h264_mp4(tmp_path / "cached.mp4", frames=52))["id"])
    content = service.ask(session_id, "What is it?", max_tokens=8)["content"]
    failed, before = service.metric(errors), service.metric(encoded)
    site.cache.kill()
    assert service.ask(service_session(service, session_id), "What is it?", max_tokens=8)["content"] == content
    assert service.metric(errors) > failed
    assert service.metric(encoded) == before + 1
    assert service.client.get("/readyz").status_code == 200

    site.cache.start()
    site.cache.wait_until_ready()

    def is_found_again() -> bool:
        found = service.metric(hits)
        assert service.ask(service_session(service, session_id), "What is it?", max_tokens=8)["content"] == content
        return service.metric(hits) > found

    eventually(is_found_again, timeout=60)


def service_session(service: RunningService, session_id: str) -> str:
    """Create another session about the same video."""
    (video_id,) = service.client.get(f"/v1/sessions/{session_id}").json()["video_ids"]
    return service.open_session(video_id)

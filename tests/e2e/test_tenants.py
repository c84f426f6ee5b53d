"""A service with API keys: tenants are isolated, and a revoked key is refused at once."""

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx2
import pytest

from tests.e2e.browser import find_browser, running_browser
from tests.e2e.test_bad_input import refusal
from tests.e2e.test_page import HAS_ENDED, IS_READY
from tests.e2e.test_page import ask as ask_on_page
from tests.running import RunningService, running


@dataclass
class Locked:
    """A service with API keys, and clients of it."""

    service: RunningService
    token: str
    acme: httpx2.Client
    rival: httpx2.Client
    anonymous: httpx2.Client


def make_key(data_dir: Path, *arguments: str) -> tuple[str, str]:
    """Create a key with `reeltalk keys add`, whether or not the service runs; returns its id and token."""
    command = [sys.executable, "-m", "service.commands.main", "keys", "add", *arguments, "--data-dir", str(data_dir)]
    done = subprocess.run(command, env={**os.environ}, capture_output=True, text=True, timeout=60, check=True)
    return done.stderr.split(",")[0], done.stdout.strip()


def client(service: RunningService, token: str | None) -> httpx2.Client:
    headers = {} if token is None else {"Authorization": f"Bearer {token}"}
    return httpx2.Client(base_url=service.url, timeout=60.0, headers=headers)


@pytest.fixture(scope="module")
def locked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Locked]:
    data_dir = tmp_path_factory.mktemp("locked")
    _, acme = make_key(data_dir, "acme", "--tenant", "acme")
    # beyond loopback the service starts only with a key
    with running(data_dir, "--host", "0.0.0.0", REELTALK_DISCONNECT_GRACE="1") as service:  # noqa: S104
        _, rival = make_key(data_dir, "rival", "--tenant", "rival")
        with client(service, acme) as one, client(service, rival) as two, client(service, None) as three:
            yield Locked(service, acme, one, two, three)


def upload(client: httpx2.Client, path: Path) -> str:
    reply = client.post("/v1/videos", files={"file": (path.name, path.read_bytes(), "video/mp4")})
    assert reply.status_code in {200, 201}, reply.text
    video_id: str = reply.json()["id"]
    with client.stream("GET", f"/v1/videos/{video_id}/events") as events:
        assert "event: ready" in events.read().decode()
    return video_id


def ask(client: httpx2.Client, video_id: str) -> tuple[str, str]:
    """Ask a question in a new session; returns the ids of the session and the answer."""
    session_id = client.post("/v1/sessions", json={"video_ids": [video_id]}).json()["id"]
    reply = client.post(f"/v1/sessions/{session_id}/messages", json={"content": "What is it?", "max_tokens": 4})
    assert reply.status_code == 200, reply.text
    return session_id, reply.json()["answer_id"]


def test_without_a_key_only_health_checks_and_the_page_are_served(locked: Locked) -> None:
    for path in ("/healthz", "/readyz", "/", "/static/app.js"):
        assert locked.anonymous.get(path).status_code == 200
    for path in ("/v1/videos", "/v1/models", "/metrics", "/openapi.json", "/nowhere"):
        assert refusal(locked.anonymous.get(path), 401) == "missing_key"


def test_records_of_a_tenant_do_not_exist_for_another(locked: Locked, drawn: Path) -> None:
    video_id = upload(locked.acme, drawn)
    session_id, answer_id = ask(locked.acme, video_id)
    for method, path in (
        ("GET", f"/v1/videos/{video_id}"),
        ("GET", f"/v1/videos/{video_id}/events"),
        ("GET", f"/v1/videos/{video_id}/content"),
        ("GET", f"/v1/videos/{video_id}/frames/0.jpg"),
        ("DELETE", f"/v1/videos/{video_id}"),
        ("GET", f"/v1/sessions/{session_id}"),
        ("GET", f"/v1/sessions/{session_id}/messages"),
        ("DELETE", f"/v1/sessions/{session_id}"),
        ("GET", f"/v1/answers/{answer_id}"),
        ("GET", f"/v1/answers/{answer_id}/events"),
        ("POST", f"/v1/answers/{answer_id}/cancel"),
    ):
        assert locked.rival.request(method, path).status_code == 404, path
    question = {"content": "What is it?"}
    assert locked.rival.post(f"/v1/sessions/{session_id}/messages", json=question).status_code == 404
    assert locked.rival.post("/v1/sessions", json={"video_ids": [video_id]}).status_code == 404
    for path in ("/v1/videos", "/v1/sessions"):
        assert len(locked.acme.get(path).json()["data"]) == 1
        assert locked.rival.get(path).json()["data"] == []
        assert locked.rival.get(path, params={"after": video_id}).json()["data"] == []
    assert locked.acme.get(f"/v1/videos/{video_id}/content").content == drawn.read_bytes()


def test_the_same_file_of_two_tenants_shares_neither_record_nor_features(locked: Locked, drawn: Path) -> None:
    mine, yours = upload(locked.acme, drawn), upload(locked.rival, drawn)
    assert mine != yours
    ask(locked.rival, yours)
    assert locked.rival.delete(f"/v1/videos/{yours}").status_code == 200
    ask(locked.acme, mine)
    assert locked.acme.get(f"/v1/videos/{mine}/content").content == drawn.read_bytes()


def test_the_prefix_cache_is_not_shared_between_tenants(locked: Locked) -> None:
    model = locked.acme.get("/v1/models").json()["data"][0]["id"]
    question = {"role": "user", "content": "Has anybody asked this before? " * 8}
    body = {"model": model, "messages": [question], "max_tokens": 2}

    def cached_tokens(client: httpx2.Client) -> int:
        reply = client.post("/v1/chat/completions", json=body)
        assert reply.status_code == 200, reply.text
        count: int = reply.json()["usage"]["prompt_tokens_details"]["cached_tokens"]
        return count

    assert cached_tokens(locked.acme) == 0
    assert cached_tokens(locked.acme) > 0
    assert cached_tokens(locked.rival) == 0


def test_a_key_for_metrics_reads_them_and_nothing_else(locked: Locked) -> None:
    _, token = make_key(locked.service.data_dir, "prometheus", "--scope", "metrics")
    with client(locked.service, token) as prometheus:
        assert "reeltalk_http_requests_total" in prometheus.get("/metrics").text
        assert refusal(prometheus.get("/v1/videos"), 403) == "missing_scope"
        assert refusal(prometheus.post("/admin/drain"), 403) == "missing_scope"
    assert refusal(locked.acme.get("/metrics"), 403) == "missing_scope"


def test_a_revoked_key_is_refused_at_once_while_the_service_runs(locked: Locked) -> None:
    key_id, token = make_key(locked.service.data_dir, "leaver", "--tenant", "acme")
    with client(locked.service, token) as leaver:
        assert leaver.get("/v1/videos").status_code == 200
        command = [sys.executable, "-m", "service.commands.main", "keys", "revoke", key_id]
        subprocess.run([*command, "--data-dir", str(locked.service.data_dir)], timeout=60, check=True)
        assert refusal(leaver.get("/v1/videos"), 401) == "invalid_key"


def test_too_many_requests_of_a_key_are_refused_with_retry_after(locked: Locked) -> None:
    _, token = make_key(locked.service.data_dir, "eager", "--requests-per-minute", "20")
    with client(locked.service, token) as eager:
        replies = [eager.get("/v1/videos") for _ in range(22)]
    assert [reply.status_code for reply in replies] == [200] * 20 + [429] * 2
    assert refusal(replies[-1], 429) == "too_many_requests"
    assert 1 <= int(replies[-1].headers["Retry-After"]) <= 4
    assert locked.acme.get("/v1/videos").status_code == 200


def test_no_secret_is_logged(locked: Locked) -> None:
    output = "".join(locked.service.output)
    assert "key_id=key_" in output
    assert "rtk_" not in output


def test_the_page_asks_for_a_key_and_works_with_it(locked: Locked, drawn: Path, tmp_path: Path) -> None:
    path = find_browser()
    if path is None:
        pytest.skip("no Chromium on PATH")
    with running_browser(path, tmp_path) as browser, browser.page(f"{locked.service.url}/") as page:
        page.wait_for("document.querySelector('#key-form').checkVisibility()")
        page.click("#key")
        page.type("rtk_wrong")
        page.press("Enter")
        is_empty = "document.querySelector('#key').value === ''"
        page.wait_for(f"{is_empty} && document.querySelector('#key').checkVisibility()")
        page.click("#key")
        page.type(locked.token)
        page.press("Enter")
        page.wait_for("document.querySelector('#model').checkVisibility()")
        assert not page.evaluate("document.querySelector('#key-form').checkVisibility()")

        page.choose("#file", drawn)
        page.wait_for(IS_READY)
        ask_on_page(page, "What happens?")
        page.wait_for(HAS_ENDED)
        page.complaints.clear()  # ignore the errors of the refused requests
        page.reload()
        page.wait_for(IS_READY)
        page.wait_for("[...document.querySelectorAll('.frames img')].every(image => image.naturalWidth > 0)")
        page.wait_for("document.querySelector('.clip video').readyState >= 2")
        page.wait_for("document.querySelectorAll('.turn').length === 1")
        assert page.complaints == []
        assert locked.token not in page.evaluate("document.documentElement.outerHTML + location.href")

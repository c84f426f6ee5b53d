"""A real nginx with docker/nginx.conf balances two fake replicas."""

import shutil
import socket
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest

from tests.docker.replica import WAIT, Replica, running_balancer, running_replica

NGINX = shutil.which("nginx") or ""
NOWHERE = "127.0.0.1:9"

pytestmark = pytest.mark.skipif(not NGINX, reason="nginx is not installed")


@pytest.fixture
def replicas() -> Iterator[tuple[Replica, Replica]]:
    with running_replica("one") as one, running_replica("two") as two:
        yield one, two


@pytest.fixture
def balancer(replicas: tuple[Replica, Replica]) -> Iterator[Path]:
    with running_balancer(NGINX, replicas=(replicas[0].address, replicas[1].address)) as listens:
        yield listens


def client_of(listens: Path) -> httpx2.Client:
    return httpx2.Client(transport=httpx2.HTTPTransport(uds=str(listens)), base_url="http://balancer", timeout=WAIT)


def test_all_requests_of_a_session_reach_one_replica_and_sessions_are_spread(balancer: Path) -> None:
    with client_of(balancer) as client:
        answered_by = {
            session: {client.get(f"/v1/sessions/ses_{session}{rest}").text for rest in ("", "/messages", "/x?after=1")}
            for session in range(20)
        }
    assert all(len(names) == 1 for names in answered_by.values())
    assert set.union(*answered_by.values()) == {"one", "two"}


def test_requests_without_a_session_are_spread_over_both(balancer: Path) -> None:
    with client_of(balancer) as client:
        assert {client.get("/v1/models").text for _ in range(40)} == {"one", "two"}


def test_an_unreachable_replica_is_skipped(replicas: tuple[Replica, Replica]) -> None:
    with (
        running_balancer(NGINX, replicas=(NOWHERE, replicas[1].address)) as listens,
        client_of(listens) as client,
    ):
        asked = [client.post(f"/v1/sessions/ses_{n}/messages", content=b"{}") for n in range(10)]
    assert {answer.text for answer in asked} == {"two 2"}


def test_without_replicas_the_response_is_an_error_of_the_api() -> None:
    with running_balancer(NGINX, replicas=(NOWHERE, NOWHERE)) as listens, client_of(listens) as client:
        answer = client.get("/v1/models")
    assert (answer.status_code, answer.headers["Retry-After"]) == (503, "2")
    assert answer.json()["error"]["code"] == "no_replica"


def test_an_event_arrives_before_the_next_one_is_sent(balancer: Path, replicas: tuple[Replica, Replica]) -> None:
    with client_of(balancer) as client, client.stream("GET", "/v1/answers/ans_1/events") as answer:
        pieces = answer.iter_bytes()
        assert next(pieces) == b"data: first\n\n"
        for replica in replicas:
            replica.first_event_read.set()
        assert b"".join(pieces) == b"data: last\n\n"


def test_the_first_bytes_of_an_upload_reach_the_replica_before_the_last_are_sent(
    balancer: Path, replicas: tuple[Replica, Replica]
) -> None:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(WAIT)
        connection.connect(str(balancer))
        connection.sendall(
            b"POST /v1/videos HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 10\r\n\r\nfirst"
        )
        receiver = next(replica for replica in replicas * 200 if replica.first_bytes_seen.wait(0.02))
        connection.sendall(b"-last")
        with connection.makefile("rb") as reply:
            assert reply.read().endswith(f"{receiver.name} 10".encode())


def test_a_body_too_large_for_a_question_is_refused_but_an_upload_of_that_size_is_not(balancer: Path) -> None:
    body = bytes((64 << 20) + 1)
    with client_of(balancer) as client:
        refused = client.post("/v1/sessions/ses_1/messages", content=body)
        taken = client.post("/v1/videos", content=body)
    assert (refused.status_code, refused.json()["error"]["code"]) == (413, "body_too_large")
    assert taken.text.split()[1] == str(len(body))


def test_the_balancer_does_not_serve_metrics_of_replicas(balancer: Path) -> None:
    with client_of(balancer) as client:
        assert client.get("/metrics").status_code == 404

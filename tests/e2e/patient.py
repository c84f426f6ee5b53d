"""A client that retries like a careful program, and records its questions and answers."""

import itertools
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import httpx2

from tests.e2e.fleet import Fleet
from tests.running import Event, parse_events

_RETRY_FOR = 240.0  # seconds for which a client retries a request
_TRY_AGAIN = {502, 503, 504}


@dataclass(frozen=True)
class Question:
    """A question about a clip with its parameters; its answer is deterministic."""

    clip: int
    content: str
    temperature: float
    seed: int
    max_tokens: int

    def body(self) -> dict[str, Any]:
        fields = asdict(self)
        del fields["clip"]
        return {**fields, "stream": True, "ignore_eos": True}


@dataclass
class AnsweredQuestion:
    """The acknowledged results of one client, which must still exist at the end."""

    question: Question
    session_id: str
    answer_id: str
    text: str
    num_connections: int
    num_posts: int


class Client:
    """A client that retries like a careful program."""

    def __init__(self, fleet: Fleet) -> None:
        self._http = fleet.client()

    def close(self) -> None:
        self._http.close()

    def upload(self, content: bytes) -> str:
        def send() -> httpx2.Response:
            return self._http.post("/v1/videos", content=content, headers={"Content-Type": "video/mp4"})

        video_id: str = self._until_taken(send)["id"]
        return video_id

    def open_session(self, video_id: str) -> str:
        body = {"video_ids": [video_id]}
        session_id: str = self._until_taken(lambda: self._http.post("/v1/sessions", json=body))["id"]
        return session_id

    def get(self, path: str) -> dict[str, Any]:
        return self._until_taken(lambda: self._http.get(path))

    def content(self, video_id: str) -> bytes:
        reply = self._try(lambda: self._http.get(f"/v1/videos/{video_id}/content"))
        return reply.content if reply.status_code == 200 else b""

    def ask(self, session_id: str, question: Question) -> AnsweredQuestion:
        """Ask a question and read its answer to the end; reconnects when necessary."""
        events, num_posts = self._begin(session_id, question)
        num_connections = 1
        answer_id = events[0].data["id"]
        deadline = time.monotonic() + _RETRY_FOR
        while events[-1].name not in {"done", "error"}:
            assert time.monotonic() < deadline, f"{answer_id} did not end"
            path, num_connections = f"/v1/answers/{answer_id}/events", num_connections + 1
            headers = {"Last-Event-ID": str(events[-1].id)}
            events += self._read(lambda: self._http.stream("GET", path, headers=headers))  # noqa: B023  called at once
        numbers = [event.id for event in events]
        assert numbers == list(range(1, len(events) + 1)), f"{answer_id}: events {numbers}"
        assert events[-1].name == "done", f"{answer_id} ended with {events[-1].data}"
        text = "".join(event.data["text"] for event in events if event.name == "delta")
        return AnsweredQuestion(question, session_id, answer_id, text, num_connections, num_posts)

    def _begin(self, session_id: str, question: Question) -> tuple[list[Event], int]:
        """The first events of the answer, and the number of requests.

        After a lost response, the session shows whether the question was accepted, because it has no other questions.
        """
        path, key = f"/v1/sessions/{session_id}/messages", {"Idempotency-Key": session_id}
        deadline = time.monotonic() + _RETRY_FOR
        for num_posts in itertools.count(1):
            assert time.monotonic() < deadline, f"{session_id}: the question was never accepted"
            events = self._read(lambda: self._http.stream("POST", path, json=question.body(), headers=key))
            if events and num_posts == 1:
                return events, num_posts
            turns = self.get(path)["data"]
            if turns and not (events and events[0].data["id"] == turns[0]["answer_id"]):  # accepted before
                answer_path = f"/v1/answers/{turns[0]['answer_id']}/events"
                events = self._read(lambda: self._http.stream("GET", answer_path))  # noqa: B023  called at once
            if events:
                return events, num_posts
            time.sleep(0.3)
        raise AssertionError

    def _read(self, connect: Callable[[], Any]) -> list[Event]:
        """The events before the connection ends or breaks; those without an id are not part of the log."""
        events: list[Event] = []
        try:
            with connect() as reply:
                if reply.status_code == 200:
                    for event in parse_events(reply.iter_lines()):
                        if event.id is not None:
                            events.append(event)
                else:
                    assert reply.status_code in _TRY_AGAIN | {409}, f"{reply.status_code} {reply.read()!r}"
        except httpx2.HTTPError:
            pass
        if not events:
            time.sleep(0.2)
        return events

    def _until_taken(self, send: Callable[[], httpx2.Response]) -> dict[str, Any]:
        reply = self._try(send)
        assert reply.is_success, f"{reply.status_code} {reply.text}"
        document: dict[str, Any] = reply.json()
        return document

    def _try(self, send: Callable[[], httpx2.Response]) -> httpx2.Response:
        deadline = time.monotonic() + _RETRY_FOR
        while True:
            try:
                reply = send()
                if reply.status_code not in _TRY_AGAIN:
                    return reply
            except httpx2.HTTPError:
                reply = None
            assert time.monotonic() < deadline, f"refused again and again, at last with {reply and reply.text}"
            time.sleep(0.2)

"""An HTTP client of the service that retries lost requests and yields every event exactly once."""

import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Self

import httpx2

from service.terminal.connection import Connection, Document
from service.terminal.events import Event, EventReader
from service.terminal.failures import Exit, Failure
from service.terminal.retries import Retries, with_retries
from service.terminal.uploading import PREPARING, OnSent, is_large, send_resumably, send_whole

_Connect = Callable[[int], AbstractContextManager[httpx2.Response]]

_SILENCE = httpx2.Timeout(25.0, connect=10.0)
"""The service sends a keep-alive comment every ten seconds, so after a longer silence the connection is dead."""
_PAGE_SIZE = 100


class Client:
    """A client of the service at `url`; its methods raise `Failure`.

    Args:
        url: the address of the service, for example http://127.0.0.1:8000.
        api_key: the API key to send, if any.
        notify: called with a sentence before a long wait.
        sleep: called with the seconds to wait before a retry.
        transport: replaces the network in tests.
    """

    def __init__(
        self,
        url: str,
        *,
        api_key: str | None = None,
        notify: Callable[[str], None] = lambda _: None,
        sleep: Callable[[float], None] = time.sleep,
        transport: httpx2.BaseTransport | None = None,
    ) -> None:
        self._connection = Connection(url, api_key=api_key, transport=transport)
        self._notify = notify
        self._sleep = sleep

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()

    # -- videos

    def upload(self, path: Path, *, on_sent: OnSent = lambda _: None) -> Document:
        """Upload a file; `on_sent` is called with the number of bytes sent. Equal files become the same video."""
        if is_large(path):
            return self.get("videos", send_resumably(self._connection, path, on_sent, self._retries()))
        return send_whole(self._connection, path, on_sent, self._retries())

    def add_url(self, url: str) -> Document:
        """Have the service fetch a video."""
        return self._create("/v1/videos", {"url": url}, timeout=PREPARING)

    def follow_video(self, video_id: str) -> Iterator[Event]:
        """Yield the events of a video's preparation; the last one is `ready` or `failed`."""
        return self._follow(
            lambda after: self._events(f"/v1/videos/{video_id}/events", after), ends={"ready", "failed"}
        )

    # -- sessions and answers

    def open_session(self, video_ids: list[str], **fields: object) -> Document:
        """Create a session about these videos."""
        return self._create("/v1/sessions", {"video_ids": video_ids, **fields})

    def ask(self, session_id: str, content: str, **fields: object) -> Iterator[Event]:
        """Ask a question; yields the answer's events: `answer` with its id first, `done` or `error` last."""
        request = {
            "json": {"content": content, "stream": True, **fields},
            "headers": {"Idempotency-Key": uuid.uuid4().hex},
            "timeout": _SILENCE,
        }
        answer_id: str | None = None

        def connect(after: int) -> AbstractContextManager[httpx2.Response]:
            if answer_id is not None:
                return self._events(f"/v1/answers/{answer_id}/events", after)
            return self._connection.reply("POST", f"/v1/sessions/{session_id}/messages", **request)

        for event in self._follow(connect, ends={"done", "error"}):
            if event.name == "answer":
                answer_id = str(event.data.get("id"))
            yield event

    def follow_answer(self, answer_id: str) -> Iterator[Event]:
        """Yield the events of an existing answer from the first on; `done` or `error` is the last."""
        return self._follow(
            lambda after: self._events(f"/v1/answers/{answer_id}/events", after), ends={"done", "error"}
        )

    def answer(self, answer_id: str) -> Document:
        """The current document of an answer."""
        return self._document("GET", f"/v1/answers/{answer_id}")

    def cancel(self, answer_id: str) -> None:
        """Cancel an answer; its text so far is kept."""
        self._document("POST", f"/v1/answers/{answer_id}/cancel")

    def messages(self, session_id: str) -> list[Document]:
        """All messages of a session, oldest first."""
        return _items(self._document("GET", f"/v1/sessions/{session_id}/messages"))

    # -- models

    def models(self) -> list[Document]:
        """The models that the service serves."""
        return _items(self._document("GET", "/v1/models"))

    # -- records; `kind` is `videos` or `sessions`

    def get(self, kind: str, record_id: str) -> Document:
        """Get one record."""
        return self._document("GET", f"/v1/{kind}/{record_id}")

    def newest(self, kind: str, *, limit: int) -> Document:
        """Get the `limit` newest records, over several pages if necessary, as one list document."""
        records: list[Document] = []
        has_more = True
        while has_more and len(records) < limit:
            params: dict[str, str | int] = {"limit": min(_PAGE_SIZE, limit - len(records))}
            if records:
                params["after"] = str(records[-1].get("id"))
            page = self._document("GET", f"/v1/{kind}", params=params)
            found = _items(page)
            records += found
            has_more = bool(page.get("has_more")) and bool(found)
        return {"object": "list", "data": records, "has_more": has_more}

    def delete(self, kind: str, record_id: str) -> Document:
        """Delete a record and all that belongs to it. After a lost response, 404 on the retry means success."""
        retries = self._retries()
        num_tries = 0

        def erase() -> Document:
            nonlocal num_tries
            num_tries += 1
            try:
                return self._connection.document("DELETE", f"/v1/{kind}/{record_id}")
            except Failure as failure:
                if num_tries > 1 and failure.status is Exit.NOT_FOUND:
                    return {"id": record_id, "object": kind.removesuffix("s"), "deleted": True}
                raise

        return with_retries(erase, retries)

    # -- requests with retries

    def _retries(self) -> Retries:
        return Retries(sleep=self._sleep, notify=self._notify)

    def _document(self, method: str, path: str, **request: Any) -> Document:
        """Send an idempotent request until it succeeds; returns the JSON of the response."""
        return with_retries(lambda: self._connection.document(method, path, **request), self._retries())

    def _create(self, path: str, body: Document, **request: Any) -> Document:
        """Send a POST request with an `Idempotency-Key`, so that retries create one record only."""
        return self._document("POST", path, json=body, headers={"Idempotency-Key": uuid.uuid4().hex}, **request)

    def _events(self, path: str, after: int) -> AbstractContextManager[httpx2.Response]:
        headers = {"Last-Event-ID": str(after)} if after else {}
        return self._connection.reply("GET", path, headers=headers, timeout=_SILENCE)

    def _follow(self, connect: _Connect, *, ends: set[str]) -> Iterator[Event]:
        """Yield the events of a log up to one in `ends`, each once and in order; reconnects when necessary."""
        after, retries = 0, self._retries()
        while True:
            try:
                with connect(after) as reply:
                    retries.has_begun = True
                    for event in _read(reply):
                        if event.number is not None and event.number > after:
                            after = event.number
                            retries.reset()
                            yield event
                            if event.name in ends:
                                return
                message = "The service closed the stream too early."
                failure = Failure(Exit.UNREACHABLE, message, code="connection_lost")
            except Failure as error:
                failure = error
            retries.wait(failure)


def _read(reply: httpx2.Response) -> Iterator[Event]:
    """Yield the events of a response.

    Raises:
        Failure: an error event about this connection, or the response is not a stream of events.
    """
    reader = EventReader()
    for line in reply.iter_lines():
        try:
            event = reader.feed(line)
        except ValueError as error:
            message = "The response of the service is not a valid stream of events."
            raise Failure(Exit.UNREACHABLE, message, code="bad_stream") from error
        if event is not None:
            if event.number is None:
                raise Failure.from_envelope(event.data)
            yield event


def _items(page: Mapping[str, Any]) -> list[Document]:
    found = page.get("data")
    return [item for item in found if isinstance(item, dict)] if isinstance(found, list) else []

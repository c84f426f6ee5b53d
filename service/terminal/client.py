"""A client of the service: one method a thing to do. What was lost on the way is asked for again, and told once."""

import contextlib
import json
import mimetypes
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlsplit

import httpx2

from service.terminal.events import Event, parse_events
from service.terminal.failures import Exit, Failure, misused

Document = dict[str, Any]
Connect = Callable[[int], AbstractContextManager[httpx2.Response]]

_SILENCE = 25.0  # seconds; the service gives a sign of life every ten, so a longer silence is a dead connection
_PREPARING = 600.0  # a file is probed, or fetched from its URL, before the reply comes
_LOSSES = 8  # in a row, without one event between them
_FIRST_PAUSE, _LONGEST_PAUSE = 0.25, 5.0
_CHUNK = 64 * 1024
_PAGE = 100


class Client:
    """Speaks to the service at `url`; every method raises `Failure` where it cannot do what it says."""

    def __init__(self, url: str, *, api_key: str | None = None) -> None:
        parts = urlsplit(url)
        if parts.scheme not in {"http", "https"} or not parts.hostname:
            raise misused(f"{url} is not the address of a service; one looks like http://127.0.0.1:8000.")
        if api_key is not None and not (api_key.isascii() and api_key.isprintable()):
            raise misused("The API key has characters that no key has.")
        self.url = url.rstrip("/")
        headers = {} if not api_key else {"Authorization": f"Bearer {api_key}"}
        self._http = httpx2.Client(base_url=self.url, headers=headers, timeout=httpx2.Timeout(60.0, connect=10.0))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()

    # -- videos

    def upload(self, path: Path, *, on_sent: Callable[[int], None]) -> Document:
        """Send a file; `on_sent` gets how many bytes have left. The same bytes again are the same video."""
        kind = mimetypes.guess_type(path.name)[0] or ""
        headers = {
            "Content-Type": kind if kind.startswith("video/") else "application/octet-stream",
            "Content-Length": str(path.stat().st_size),
        }

        def send() -> Document:
            return self._document(
                "POST",
                "/v1/videos",
                params={"filename": path.name},
                headers=headers,
                content=_chunks(path, on_sent),
                timeout=httpx2.Timeout(60.0, connect=10.0, read=_PREPARING),
            )

        return _again_if_lost(send)

    def add_url(self, url: str) -> Document:
        """Have the service fetch a video."""
        timeout = httpx2.Timeout(60.0, connect=10.0, read=_PREPARING)
        return _again_if_lost(lambda: self._document("POST", "/v1/videos", json={"url": url}, timeout=timeout))

    def follow_video(self, video_id: str) -> Iterator[Event]:
        """How its preparation goes; the last event is `ready` or `failed`."""
        return _follow(lambda after: self._events(f"/v1/videos/{video_id}/events", after), ends={"ready", "failed"})

    # -- sessions and answers

    def open_session(self, video_ids: list[str], **fields: object) -> Document:
        """Begin a conversation about these videos."""
        headers = {"Idempotency-Key": uuid.uuid4().hex}
        body = {"video_ids": video_ids, **fields}
        return _again_if_lost(lambda: self._document("POST", "/v1/sessions", json=body, headers=headers))

    def ask(self, session_id: str, content: str, **fields: object) -> Iterator[Event]:
        """An answer's events: `answer` with its id first, `done` or `error` last."""
        body = {"content": content, "stream": True, **fields}
        key = {"Idempotency-Key": uuid.uuid4().hex}
        answer_id: str | None = None

        def connect(after: int) -> AbstractContextManager[httpx2.Response]:
            if answer_id is not None:
                return self._events(f"/v1/answers/{answer_id}/events", after)
            timeout = httpx2.Timeout(_SILENCE, connect=10.0)
            return self._stream("POST", f"/v1/sessions/{session_id}/messages", json=body, headers=key, timeout=timeout)

        for event in _follow(connect, ends={"done", "error"}):
            if event.name == "answer":
                answer_id = str(event.data.get("id"))
            yield event

    def answer(self, answer_id: str) -> Document:
        """An answer as it is now."""
        return _again_if_lost(lambda: self._document("GET", f"/v1/answers/{answer_id}"))

    def cancel(self, answer_id: str) -> None:
        """Stop an answer; what it said is kept."""
        self._document("POST", f"/v1/answers/{answer_id}/cancel")

    def messages(self, session_id: str) -> list[Document]:
        """All turns of a session, oldest first."""
        return _items(self._document("GET", f"/v1/sessions/{session_id}/messages"))

    # -- records of a kind, `videos` or `sessions`

    def get(self, kind: str, record_id: str) -> Document:
        """One record."""
        return self._document("GET", f"/v1/{kind}/{record_id}")

    def newest(self, kind: str, *, limit: int) -> Document:
        """The newest records, page after page until there are `limit` or no more; a list as one page has it."""
        records: list[Document] = []
        has_more = True
        while has_more and len(records) < limit:
            params: dict[str, str | int] = {"limit": min(_PAGE, limit - len(records))}
            if records:
                params["after"] = str(records[-1].get("id"))
            page = self._document("GET", f"/v1/{kind}", params=params)
            found = _items(page)
            records += found
            has_more = bool(page.get("has_more")) and bool(found)
        return {"object": "list", "data": records, "has_more": has_more}

    def delete(self, kind: str, record_id: str) -> Document:
        """Erase a record and what belongs to it."""
        return self._document("DELETE", f"/v1/{kind}/{record_id}")

    # -- the wire

    def _document(self, method: str, path: str, **request: Any) -> Document:
        with self._stream(method, path, **request) as reply:
            found = _parsed(reply.read())
        if found is None:
            raise self._stranger()
        return found

    def _events(self, path: str, after: int) -> AbstractContextManager[httpx2.Response]:
        headers = {"Last-Event-ID": str(after)} if after else {}
        return self._stream("GET", path, headers=headers, timeout=httpx2.Timeout(_SILENCE, connect=10.0))

    @contextlib.contextmanager
    def _stream(self, method: str, path: str, **request: Any) -> Iterator[httpx2.Response]:
        """A reply that is no error, still to be read; what goes wrong in the block is a `Failure` too."""
        try:
            with self._http.stream(method, path, **request) as reply:
                if not reply.is_success:
                    raise self._refusal(reply)
                yield reply
        except (httpx2.ConnectError, httpx2.ConnectTimeout) as error:
            message = f"No service answers at {self.url}. Start one with `reeltalk serve`, or name one with --url."
            raise Failure(Exit.UNREACHABLE, message, code="unreachable") from error
        except (httpx2.TransportError, httpx2.DecodingError) as error:
            message = f"The connection to {self.url} was lost."
            raise Failure(Exit.UNREACHABLE, message, code="connection_lost", is_passing=True) from error
        except httpx2.InvalidURL as error:
            raise misused(f"{self.url} is not the address of a service.") from error

    def _refusal(self, reply: httpx2.Response) -> Failure:
        document = _parsed(reply.read())
        if document is not None and "error" in document:
            return Failure.of_envelope(document, retry_after=reply.headers.get("retry-after", ""))
        if reply.status_code in {502, 503, 504}:
            message = f"{self.url} answers with status {reply.status_code}: the service behind it is away."
            return Failure(Exit.NOT_NOW, message, code="bad_gateway", is_passing=True)
        return self._stranger()

    def _stranger(self) -> Failure:
        return Failure(Exit.UNREACHABLE, f"What answers at {self.url} is not Reeltalk.", code="not_reeltalk")


def _follow(connect: Connect, *, ends: set[str]) -> Iterator[Event]:
    """A log's events up to one of `ends`, each once and in order, over as many connections as it takes."""
    after = losses = 0
    has_begun = False
    while True:
        try:
            with connect(after) as reply:
                has_begun = True
                for event in parse_events(reply.iter_lines()):
                    if event.number is None:  # not of the log: this reading of it has failed
                        raise Failure.of_envelope(event.data)
                    if event.number <= after:
                        continue
                    after, losses = event.number, 0
                    yield event
                    if event.name in ends:
                        return
            failure = Failure(Exit.UNREACHABLE, "The service closed the stream too early.", code="connection_lost")
        except ValueError as error:
            raise Failure(
                Exit.UNREACHABLE, "What the service sends is no stream of events.", code="bad_stream"
            ) from error
        except Failure as error:
            is_lost = error.code in {"connection_lost", "request_in_progress"}
            if not (is_lost or (has_begun and (error.is_passing or error.code == "unreachable"))):
                raise
            failure = error
        losses += 1
        _pause(losses, failure)


def _again_if_lost(send: Callable[[], Document]) -> Document:
    """What is safe to repeat, sent again where no reply came."""
    losses = 0
    while True:
        try:
            return send()
        except Failure as failure:
            is_lost = failure.code in {"connection_lost", "request_in_progress"}
            if not (is_lost or (losses and failure.code == "unreachable")):
                raise
            losses += 1
            _pause(losses, failure)


def _pause(losses: int, failure: Failure) -> None:
    if losses > _LOSSES:
        raise failure
    time.sleep(min(_FIRST_PAUSE * 2 ** (losses - 1), _LONGEST_PAUSE))


def _chunks(path: Path, on_sent: Callable[[int], None]) -> Iterator[bytes]:
    num_sent = 0
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            yield chunk
            num_sent += len(chunk)
            on_sent(num_sent)


def _parsed(body: bytes) -> Document | None:
    try:
        found = json.loads(body)
    except ValueError:
        return None
    return found if isinstance(found, dict) else None


def _items(page: Mapping[str, Any]) -> list[Document]:
    found = page.get("data")
    return [item for item in found if isinstance(item, dict)] if isinstance(found, list) else []

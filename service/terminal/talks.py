"""A conversation as the commands see it, and the one with a service; the one without is in `local.py`."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

from service.terminal.client import Client
from service.terminal.connection import Document
from service.terminal.events import Event
from service.terminal.failures import Exit, Failure, misused
from service.terminal.printing import ShowProgress


class Talk(Protocol):
    """A conversation about one video."""

    def ask(self, question: str) -> Iterator[Event]:
        """The answer's events: `progress`, `delta`, and `done` or `error` last."""
        ...

    def running(self) -> tuple[str, Iterator[Event]] | None:
        """The question that is being answered already, and its answer's events; None if there is none."""
        ...

    def stop(self) -> None:
        """Stop the answer that is being given; what it said is kept."""
        ...

    def answer(self) -> Document:
        """The last answer as a document."""
        ...

    @property
    def way_back(self) -> str:
        """The options that go on with this conversation, or nothing."""
        ...


class ServiceTalk:
    """A session of a service."""

    def __init__(self, client: Client, session_id: str, fields: Document) -> None:
        self._client = client
        self._session_id = session_id
        self._fields = fields
        self._answer_id: str | None = None

    @property
    def way_back(self) -> str:
        """How to go on with the session later."""
        return f"--session {self._session_id}"

    def ask(self, question: str) -> Iterator[Event]:
        """The answer's events, over as many connections as it takes."""
        self._answer_id = None
        for event in self._client.ask(self._session_id, question, **self._fields):
            if event.name == "answer":
                self._answer_id = str(event.data.get("id"))
            yield event

    def running(self) -> tuple[str, Iterator[Event]] | None:
        """What the service is still answering in this session, asked for elsewhere or before."""
        self._answer_id = self._client.get("sessions", self._session_id).get("running_answer_id")
        if self._answer_id is None:
            return None
        return str(self.answer().get("question")), self._client.follow_answer(self._answer_id)

    def stop(self) -> None:
        """Cancel on the service. An answer without an id yet is stopped there too, when its reader stays away."""
        if self._answer_id is not None:
            self._client.cancel(self._answer_id)

    def answer(self) -> Document:
        """As `GET /v1/answers/{id}` has it."""
        return self._client.answer(str(self._answer_id))


def prepare(client: Client, video: str, show: ShowProgress) -> Document:
    """Send a video where it is not there yet, and wait until it is ready. Returns its record."""
    record = _known_or_sent(client, video, show)
    if record.get("status") == "failed":
        error: dict[str, Any] = record.get("error") or {}
        raise Failure(Exit.REFUSED, str(error.get("message")), code=str(error.get("code")))
    if record.get("status") != "ready":
        for event in client.follow_video(str(record.get("id"))):
            if event.name == "failed":
                raise Failure.of_envelope(event.data)
            if event.name != "ready":
                show(event.name, float(event.data.get("fraction", 0)), 1)
    return record


def file_of(video: str) -> Path:
    """The file that a user names, if it can be one."""
    path = Path(video).expanduser()
    if path.is_dir():
        raise misused(f"{video} is a directory; name a file.")
    if not path.is_file():
        raise misused(f"There is no file {video}.")
    return path


def checked_id(kind: str, text: str) -> str:
    """An id that can stand in a path; `kind` is `videos` or `sessions`."""
    prefix = {"videos": "vid", "sessions": "ses"}[kind]
    if not re.fullmatch(rf"{prefix}_[0-9a-f]{{32}}", text):
        raise misused(f"{text} is no id; one looks like {prefix}_ and 32 digits from 0 to f.")
    return text


def _known_or_sent(client: Client, video: str, show: ShowProgress) -> Document:
    if video.startswith(("https://", "http://")):
        show("fetch")
        return client.add_url(video)
    if video.startswith("vid_") and not Path(video).exists():
        return client.get("videos", checked_id("videos", video))
    path = file_of(video)
    try:
        size = path.stat().st_size
        return client.upload(path, on_sent=lambda num_sent: show("upload", num_sent, size))
    except OSError as error:
        raise misused(f"{video} cannot be read: {error.strerror}.") from error

"""The interface of a conversation, and its implementation by a service's session.

`local.py` has the implementation without a service.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

from service.terminal.client import Client
from service.terminal.connection import Document
from service.terminal.events import Event
from service.terminal.failures import Exit, Failure, usage_error
from service.terminal.models import check_model
from service.terminal.printing import ShowProgress


class Chat(Protocol):
    """A conversation about one video, or with a text model about none."""

    def ask(self, question: str) -> Iterator[Event]:
        """Ask a question; yields the answer's events: `progress`, `delta`, and `done` or `error` last."""
        ...

    def running(self) -> tuple[str, Iterator[Event]] | None:
        """The question of an answer that is already running, and the answer's events; None if there is none."""
        ...

    def stop(self) -> None:
        """Stop the running answer; its text so far is kept."""
        ...

    def answer(self) -> Document:
        """The document of the last answer."""
        ...

    def model(self) -> str:
        """The name of the model that answers."""
        ...

    def change_model(self, name: str) -> None:
        """Begin a new conversation about the same video with another model; raises `Failure` if it does not fit."""
        ...

    @property
    def resume_options(self) -> str:
        """The command-line options that continue this conversation; empty if it cannot be continued."""
        ...


class ServiceChat:
    """A conversation in a session of a service."""

    def __init__(self, client: Client, session_id: str, fields: Document) -> None:
        self._client = client
        self._session_id = session_id
        self._fields = fields
        self._answer_id: str | None = None

    @property
    def resume_options(self) -> str:
        """The option `--session` with the id of the session."""
        return f"--session {self._session_id}"

    def ask(self, question: str) -> Iterator[Event]:
        """Ask a question; reconnects until the answer is complete."""
        self._answer_id = None
        for event in self._client.ask(self._session_id, question, **self._fields):
            if event.name == "answer":
                self._answer_id = str(event.data.get("id"))
            yield event

    def running(self) -> tuple[str, Iterator[Event]] | None:
        """The question and the events of an answer that another client, or an earlier command, has begun."""
        self._answer_id = self._client.get("sessions", self._session_id).get("running_answer_id")
        if self._answer_id is None:
            return None
        return str(self.answer().get("question")), self._client.follow_answer(self._answer_id)

    def stop(self) -> None:
        """Cancel the answer. One whose id is not known yet stops by itself when its reader does not return."""
        if self._answer_id is not None:
            self._client.cancel(self._answer_id)

    def answer(self) -> Document:
        """The document of `GET /v1/answers/{id}`."""
        return self._client.answer(str(self._answer_id))

    def model(self) -> str:
        """The model of the session."""
        return str(self._client.get("sessions", self._session_id).get("model"))

    def change_model(self, name: str) -> None:
        """Open a session with another model on the same videos, with the same frames and system prompt."""
        session = self._client.get("sessions", self._session_id)
        video_ids = list(session.get("video_ids") or ())
        check_model(self._client, name, has_video=bool(video_ids))
        frames = {field: value for field, value in (session.get("frames") or {}).items() if value is not None}
        opening = {"model": name, "system": session.get("system") or "", "frames": frames or None}
        self._session_id = str(self._client.open_session(video_ids, **opening)["id"])
        self._answer_id = None


def prepare(client: Client, video: str, show: ShowProgress) -> Document:
    """Upload a video if the service does not have it, and wait until it is ready; returns its record."""
    record = _find_or_upload(client, video, show)
    if record.get("status") == "failed":
        error: dict[str, Any] = record.get("error") or {}
        raise Failure(Exit.REFUSED, str(error.get("message")), code=str(error.get("code")))
    if record.get("status") != "ready":
        for event in client.follow_video(str(record.get("id"))):
            if event.name == "failed":
                raise Failure.from_envelope(event.data)
            if event.name != "ready":
                show(event.name, float(event.data.get("fraction", 0)), 1)
    return record


def file_of(video: str) -> Path:
    """The path of an existing file; raises `Failure` for anything else."""
    path = Path(video).expanduser()
    if path.is_dir():
        raise usage_error(f"{video} is a directory; name a file.")
    if not path.is_file():
        raise usage_error(f"There is no file {video}.")
    return path


def checked_id(kind: str, text: str) -> str:
    """Check that `text` is an id before it becomes part of a URL; `kind` is `videos` or `sessions`."""
    prefix = {"videos": "vid", "sessions": "ses"}[kind]
    if not re.fullmatch(rf"{prefix}_[0-9a-f]{{32}}", text):
        raise usage_error(f"{text} is not an id. An id is {prefix}_ and 32 hexadecimal digits.")
    return text


def _find_or_upload(client: Client, video: str, show: ShowProgress) -> Document:
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
        raise usage_error(f"{video} cannot be read: {error.strerror}.") from error

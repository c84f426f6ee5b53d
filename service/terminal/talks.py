"""A conversation as the commands see it, and the one with a service; the one without is in `local.py`."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

from service.terminal.client import Client, Document
from service.terminal.events import Event
from service.terminal.failures import Exit, Failure, misused
from service.terminal.printing import ShowProgress


class Talk(Protocol):
    """A conversation about one video."""

    def ask(self, question: str) -> Iterator[Event]:
        """The answer's events: `progress`, `delta`, and `done` or `error` last."""
        ...

    def stop(self) -> None:
        """Stop the answer that is being given; what it said is kept."""
        ...

    def answer(self) -> Document:
        """The last answer as a document."""
        ...

    def renew(self) -> None:
        """Forget what was said; the video stays."""
        ...

    @property
    def way_back(self) -> str:
        """The command that goes on with this conversation, or nothing."""
        ...


class ServiceTalk:
    """A session of a service."""

    def __init__(self, client: Client, session: Document, fields: Document) -> None:
        self._client = client
        self._session = session
        self._fields = fields
        self._answer_id: str | None = None

    @classmethod
    def begin(
        cls, client: Client, video: str, *, frames: Document, fields: Document, show: ShowProgress
    ) -> "ServiceTalk":
        """Open a session about a video, which is sent and prepared where it has to be."""
        video_id = prepare(client, video, show)
        session = client.open_session([video_id], **_opening(frames, str(fields.pop("system", ""))))
        return cls(client, session, fields)

    @classmethod
    def resume(cls, client: Client, session_id: str, fields: Document) -> "ServiceTalk":
        """Go on with a session."""
        fields.pop("system", None)
        return cls(client, client.get("sessions", session_id), fields)

    @property
    def session_id(self) -> str:
        """The session's id."""
        return str(self._session["id"])

    @property
    def way_back(self) -> str:
        """How to go on with the session later."""
        return f"reeltalk chat --session {self.session_id}"

    def history(self) -> list[Document]:
        """What was said so far, oldest first."""
        return self._client.messages(self.session_id)

    def ask(self, question: str) -> Iterator[Event]:
        """The answer's events, over as many connections as it takes."""
        self._answer_id = None
        for event in self._client.ask(self.session_id, question, **self._fields):
            if event.name == "answer":
                self._answer_id = str(event.data.get("id"))
            else:
                yield event

    def stop(self) -> None:
        """Cancel on the service. An answer without an id yet is stopped there too, when its reader stays away."""
        if self._answer_id is not None:
            self._client.cancel(self._answer_id)

    def answer(self) -> Document:
        """As `GET /v1/answers/{id}` has it."""
        return self._client.answer(str(self._answer_id))

    def renew(self) -> None:
        """Open another session, like this one."""
        like_this = _opening(self._session.get("frames") or {}, str(self._session.get("system", "")))
        self._session = self._client.open_session(self._session["video_ids"], **like_this)


def prepare(client: Client, video: str, show: ShowProgress) -> str:
    """Send a video where it is not there yet, and wait until it is ready. Returns its id."""
    record = _known_or_sent(client, video, show)
    video_id = str(record.get("id"))
    if record.get("status") == "failed":
        error: dict[str, Any] = record.get("error") or {}
        raise Failure(Exit.REFUSED, str(error.get("message")), code=str(error.get("code")))
    if record.get("status") != "ready":
        for event in client.follow_video(video_id):
            if event.name == "failed":
                raise Failure.of_envelope(event.data)
            show(event.name, float(event.data.get("fraction", 0)))
    return video_id


def is_url(video: str) -> bool:
    """Whether a video is named by its address."""
    return video.startswith(("https://", "http://"))


def file_of(video: str) -> Path:
    """The file that a user names, if it can be one."""
    path = Path(video).expanduser()
    if not path.is_file():
        raise misused(f"There is no file {video}.")
    return path


def _known_or_sent(client: Client, video: str, show: ShowProgress) -> Document:
    if is_url(video):
        show("fetch", 0)
        return client.add_url(video)
    if video.startswith("vid_") and not Path(video).exists():
        return client.get("videos", video)
    path = file_of(video)
    try:
        size = max(path.stat().st_size, 1)
        return client.upload(path, on_sent=lambda num_sent: show("upload", num_sent / size))
    except OSError as error:
        raise misused(f"{video} cannot be read: {error.strerror}.") from error


def _opening(frames: Document, system: str) -> Document:
    """The optional fields of a new session, those that say something."""
    chosen = {name: value for name, value in frames.items() if value is not None}
    return ({"frames": chosen} if chosen else {}) | ({"system": system} if system else {})

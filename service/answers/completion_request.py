"""A chat completion as requested: a conversation, and the videos that it names, contains or links to."""

from dataclasses import dataclass

from model.text.conversation import Turn
from service.answers.question import Question


@dataclass(frozen=True, kw_only=True, slots=True)
class UploadedVideo:
    """A video named by its id; `param` is the request's field that names it."""

    video_id: str
    param: str


@dataclass(frozen=True, kw_only=True, slots=True)
class InlineVideo:
    """A video file that came with the request."""

    data: bytes
    content_type: str
    filename: str | None
    param: str


@dataclass(frozen=True, kw_only=True, slots=True)
class RemoteVideo:
    """A video at an https URL."""

    url: str
    param: str


VideoSource = UploadedVideo | InlineVideo | RemoteVideo


@dataclass(frozen=True, kw_only=True, slots=True)
class CompletionRequest:
    """A conversation and its last question, to be answered `num_choices` times."""

    model: str | None
    """The name of the model; None is the default one."""
    videos: tuple[VideoSource, ...]
    history: tuple[Turn, ...]
    question: Question
    system: str
    num_choices: int

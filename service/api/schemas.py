"""Schemas of request bodies and replies. Unknown fields are refused; types are strict."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from model.modalities import Modality
from model.video.spec import MAX_FRAME_COUNT
from model.weight_bits import Quantization
from service.answers.question import Question
from service.answers.sampling import WHOLE, BeamSearchFields, SamplingRequest
from service.drain import State
from service.store.records import (
    AnswerRecord,
    AudioTrack,
    FinishReason,
    MessageRecord,
    Moment,
    Problem,
    SampledFrame,
    SessionRecord,
    Timings,
    Usage,
    VideoFrames,
    VideoRecord,
    VideoStatus,
)
from service.videos.fetching import MAX_URL
from service.workers.model_spec import ModelName, ModelOptions
from service.workers.supervisor import ModelState

VideoId = Annotated[str, StringConstraints(pattern=r"^vid_[0-9a-f]{32}$")]
SessionId = Annotated[str, StringConstraints(pattern=r"^ses_[0-9a-f]{32}$")]
AnswerId = Annotated[str, StringConstraints(pattern=r"^ans_[0-9a-f]{32}$")]


class RequestBody(BaseModel):
    """A request body: unknown fields are refused, and types are not converted."""

    model_config = ConfigDict(extra="forbid", strict=True)


class Reply(BaseModel):
    """A response body."""

    model_config = ConfigDict(extra="forbid", json_schema_serialization_defaults_required=True)


class ErrorDetail(Reply):
    """An error: a message for people, a code for programs, the field that it is about."""

    message: str
    type: str
    param: str | None
    code: str


class ErrorReply(Reply):
    """The form of every error, as a JSON body and as the data of an SSE `error` event."""

    error: ErrorDetail


class VideoByUrl(RequestBody):
    """A video for the server to fetch, if its operator allows it."""

    url: str = Field(min_length=1, max_length=MAX_URL)


class Video(Reply):
    """An uploaded video; `frames` are the ones the model sees by default.

    `audio` describes the sound track. If it is null, `audio_error` is the reason, and models that hear use the frames.
    """

    id: str
    object: Literal["video"] = "video"
    sha256: str
    bytes: int
    filename: str
    created_at: int
    expires_at: int | None = None
    duration: float | None
    width: int | None
    height: int | None
    fps: float | None
    num_frames: int | None
    codec: str | None
    audio: AudioTrack | None
    audio_error: Problem | None
    status: VideoStatus
    error: Problem | None
    frames: tuple[SampledFrame, ...]

    @classmethod
    def of(cls, record: VideoRecord) -> "Video":
        """Build the public form of a record."""
        fields = record.model_dump(exclude={"content_type", "created_at", "expires_at", "audio", "audio_error"})
        expires_at = None if record.expires_at is None else int(record.expires_at)
        return cls(
            created_at=int(record.created_at),
            expires_at=expires_at,
            audio=record.audio,  # not in the document of a record without sound
            audio_error=record.audio_error,
            **fields,
        )


class VideoList(Reply):
    """A page of videos, newest first."""

    object: Literal["list"] = "list"
    data: list[Video]
    has_more: bool


class Deleted(Reply):
    """A resource was deleted."""

    id: str
    object: Literal["video", "session"]
    deleted: Literal[True] = True


class FramesField(RequestBody):
    """What the model takes of a video: how many frames, the interval in seconds, and whether it hears the sound."""

    count: Annotated[int, Field(ge=1, le=MAX_FRAME_COUNT), WHOLE] | None = None
    start: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    end: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    audio: bool = Field(default=True, description="False: a model that hears takes the pictures without the sound.")


class SessionRequest(RequestBody):
    """Create a session: about one or more videos, or without any for a model that sees none."""

    video_ids: list[VideoId] = Field(
        default=[], max_length=64, description="At least one, unless the model's `modalities` are `text` alone."
    )
    model: str | None = Field(default=None, max_length=200, description="By default the server's default model.")
    system: str = Field(default="", max_length=8_000)
    frames: FramesField | None = None


class SessionFrames(Reply):
    """The frames that a session samples, and whether it hears their sound; null is the model's default."""

    count: int | None
    start: float | None
    end: float | None
    audio: bool = True


class Session(Reply):
    """A conversation, about videos or without any."""

    id: str
    object: Literal["session"] = "session"
    video_ids: tuple[str, ...]
    model: str
    system: str
    frames: SessionFrames
    created_at: int
    running_answer_id: str | None = Field(
        description="The running answer, if any; follow it at `/v1/answers/{answer_id}/events`."
    )

    @classmethod
    def of(cls, record: SessionRecord, *, running_answer_id: str | None = None) -> "Session":
        """Build the public form of a record."""
        return cls(
            created_at=int(record.created_at),
            running_answer_id=running_answer_id,
            **record.model_dump(exclude={"created_at"}),
        )


class SessionList(Reply):
    """A page of sessions, newest first."""

    object: Literal["list"] = "list"
    data: list[Session]
    has_more: bool


class MessageRequest(BeamSearchFields, RequestBody):
    """Ask a question. Sampling fields that are not given take the model's defaults."""

    content: str = Field(min_length=1, max_length=32_000)
    stream: bool = Field(default=False, description="Server-Sent Events instead of one JSON reply.")
    priority: Annotated[int, Field(ge=-9, le=9), WHOLE] = Field(
        default=0, description="Waiting questions with a higher priority are answered first. A key can have a maximum."
    )
    timeout: float | None = Field(
        default=None,
        gt=0,
        le=86_400,
        allow_inf_nan=False,
        description="Seconds after which an unfinished answer, even one not begun, ends with `deadline_exceeded`.",
    )

    def question(self) -> Question:
        """Convert to the service's own form."""
        return Question(
            content=self.content,
            sampling=SamplingRequest(**self.model_dump(include=set(BeamSearchFields.model_fields))),
            priority=self.priority,
            timeout=self.timeout,
        )


class Message(Reply):
    """A message of a session; the last five fields are null unless it is an answer.

    `moments` are the times that an answer names; null if the model has no time axis.
    """

    id: str
    object: Literal["message"] = "message"
    role: Literal["user", "assistant"]
    content: str
    answer_id: str
    created_at: int
    finish_reason: FinishReason | None
    usage: Usage | None
    timings: Timings | None
    frames: tuple[VideoFrames, ...] | None
    moments: tuple[Moment, ...] | None = None

    @classmethod
    def of(cls, record: MessageRecord) -> "Message":
        """Build the public form of a record."""
        return cls(created_at=int(record.created_at), **record.model_dump(exclude={"created_at"}))


class MessageList(Reply):
    """All messages of a session, oldest first."""

    object: Literal["list"] = "list"
    data: list[Message]
    has_more: Literal[False] = False


class Answer(Reply):
    """An answer; `message` is null until it has ended without an error."""

    id: str
    object: Literal["answer"] = "answer"
    session_id: str
    question: str
    created_at: int
    status: Literal["in_progress", "completed", "cancelled", "failed"]
    message: Message | None
    error: Problem | None

    @classmethod
    def of(cls, record: AnswerRecord) -> "Answer":
        """Build the public form of a record."""
        return cls(
            id=record.id,
            session_id=record.session_id,
            question=record.question,
            created_at=int(record.created_at),
            status=record.status,
            message=None if record.message is None else Message.of(record.message),
            error=record.error,
        )


class FrameCounts(Reply):
    """How many frames of a video a model takes, and the rule that selects them."""

    default: int
    min: int
    max: int
    rule: str


class Model(Reply):
    """A model that this server serves. The fields from `max_model_len` on are null until it has been loaded once."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: Literal["reeltalk"] = "reeltalk"
    family: str
    quantization: Quantization | None
    state: ModelState = Field(
        description="`broken` models cannot be loaded; `/readyz` has the reason. The server tries again."
    )
    is_default: bool = Field(description="Whether the model answers requests that name no model.")
    max_model_len: int | None
    num_video_tokens: int | None = Field(description="Tokens of one video in a prompt.")
    modalities: tuple[Modality, ...] | None = Field(
        description="`video`: sessions are about videos; `audio`: and about their sound; `text`: they have none."
    )
    frames: FrameCounts | None = Field(description="Null also for a model without videos.")
    rows: dict[str, int] | None = Field(description="Tokens of one video in a prompt, by part of its features.")
    features: dict[str, tuple[int, int]] | None = Field(description="The shape of each part of a video's features.")
    time_axis: int | None = Field(
        description="Numbers in answers are times, in fractions of the clip with this denominator; null: they are not."
    )


class ModelList(Reply):
    """The models that this server serves."""

    object: Literal["list"] = "list"
    data: list[Model]


class ModelLoad(ModelOptions):
    """Load a model. What is not given is as in the service's settings."""

    name: ModelName


class DrainState(Reply):
    """The state of a replica's shutdown, and the number of its running answers."""

    state: State
    num_answers: int


class Health(Reply):
    """The result of a health check: what is missing, if anything.

    `problems` has a sentence for each worker, of any model, that fails to start; other workers may take over its work.
    """

    status: Literal["ok", "unavailable"]
    missing: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()

"""The records of videos, uploads, sessions, messages and answers, as stored in Redis."""

from dataclasses import asdict
from typing import Annotated, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, PlainSerializer, SerializerFunctionWrapHandler, model_serializer

from model.engine.sampling_params import SamplingParams

VideoStatus = Literal["uploaded", "processing", "ready", "failed"]
AnswerStatus = Literal["in_progress", "completed", "cancelled", "failed"]
FinishReason = Literal["stop", "length", "abort", "error"]


class Record(BaseModel):
    """A frozen document with a JSON form. A field that only a later release knows is ignored when it is read."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class GrownRecord(Record):
    """A record with fields that earlier releases do not know, and refuse; they are written if they have a value."""

    ADDED: ClassVar[frozenset[str]]
    """The names of these fields."""

    @model_serializer(mode="wrap")
    def _document(self, serialize: SerializerFunctionWrapHandler) -> dict[str, object]:
        document: dict[str, object] = serialize(self)
        fields = type(self).model_fields
        unset = {name for name in self.ADDED if getattr(self, name) == fields[name].default}
        return {name: value for name, value in document.items() if name not in unset}


class SampledFrame(Record):
    """One frame the model sees: its index in the file and its time in seconds."""

    index: int
    timestamp: float


class Problem(Record):
    """Why something failed: a code for programs and a message for people."""

    code: str
    message: str


class AudioTrack(Record):
    """The sound track of a video: its codec, samples per second, and channels."""

    codec: str
    rate: int
    channels: int


class VideoRecord(GrownRecord):
    """An uploaded video. Its properties are null until the file has been probed."""

    ADDED = frozenset({"audio", "audio_error"})

    id: str
    sha256: str
    bytes: int
    filename: str
    content_type: str
    created_at: float
    expires_at: float | None = None
    """When the file expires, in seconds since 1970; null if it does not."""
    duration: float | None = None
    width: int | None = None
    height: int | None = None
    fps: float | None = None
    num_frames: int | None = None
    codec: str | None = None
    audio: AudioTrack | None = None
    """Null without sound that can be used; `audio_error` is then the reason."""
    audio_error: Problem | None = None
    status: VideoStatus = "uploaded"
    error: Problem | None = None
    frames: tuple[SampledFrame, ...] = ()


class UploadRecord(Record):
    """A resumable upload: `offset` of its `length` bytes are stored."""

    id: str
    length: int
    offset: int = 0
    filename: str
    content_type: str
    metadata: str
    """The `Upload-Metadata` header, as sent by the client."""
    parts: tuple[str, ...] = ()
    """The objects that contain its bytes, in order, if they are in a bucket."""
    expires_at: float
    video_id: str | None = None
    """The video that the upload became."""
    error: Problem | None = None
    """Why the upload did not become a video."""

    @property
    def is_whole(self) -> bool:
        """Whether all bytes are stored."""
        return self.offset == self.length


class FrameRequest(GrownRecord):
    """Which frames of the videos a session samples, and whether it hears their sound; null is the model's default."""

    ADDED = frozenset({"audio"})

    count: int | None = None
    start: float | None = None
    end: float | None = None
    audio: bool = True


class SessionRecord(Record):
    """A conversation about one or more videos."""

    id: str
    video_ids: tuple[str, ...]
    model: str
    system: str
    frames: FrameRequest
    created_at: float


class CachedTokens(Record):
    """Prompt tokens that were taken from the prefix cache."""

    cached_tokens: int = 0


class Usage(Record):
    """Token counts, video tokens included."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: CachedTokens = CachedTokens()


class Timings(Record):
    """How long the parts of an answer took, and its speed."""

    time_to_first_token_ms: float | None
    generation_time_ms: float
    mean_itl_ms: float | None
    tokens_per_second: float | None
    total_time_ms: float


class VideoFrames(Record):
    """The sampled frames of one video that an answer is based on."""

    video_id: str
    frames: tuple[SampledFrame, ...]


class Moment(Record):
    """A stretch of a video that an answer names: its seconds, and where its text is in the answer, in characters."""

    video_id: str
    start: float
    end: float
    text_start: int
    text_end: int


class MessageRecord(GrownRecord):
    """One message of a session."""

    ADDED = frozenset({"moments"})

    id: str
    role: Literal["user", "assistant"]
    content: str
    created_at: float
    answer_id: str
    finish_reason: FinishReason | None = None
    usage: Usage | None = None
    timings: Timings | None = None
    frames: tuple[VideoFrames, ...] | None = None
    moments: tuple[Moment, ...] | None = None
    """The moments that an answer names; null if the model has no time axis."""


def _sampling_document(params: SamplingParams) -> dict[str, object]:
    fields = asdict(params)
    del fields["logprobs"]  # an answer of a session has none; an earlier release refuses the field
    return fields


Sampling = Annotated[SamplingParams, PlainSerializer(_sampling_document)]
"""How an answer's tokens are chosen; complete, so that any replica can continue it."""


class AnswerRecord(Record):
    """An answer, from the acceptance of its question on."""

    id: str
    session_id: str
    question: str
    sampling: Sampling
    created_at: float
    priority: int = 0
    deadline: float | None = None
    """The time by which the client needs the answer, in seconds since 1970."""
    status: AnswerStatus = "in_progress"
    message: MessageRecord | None = None
    error: Problem | None = None

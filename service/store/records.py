"""What is kept about a video, a session, a message and an answer, as it stands in Redis."""

from dataclasses import asdict
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, PlainSerializer

from model.engine.sampling_params import SamplingParams

VideoStatus = Literal["uploaded", "processing", "ready", "failed"]
AnswerStatus = Literal["in_progress", "completed", "cancelled", "failed"]
FinishReason = Literal["stop", "length", "abort", "error"]


class Record(BaseModel):
    """A frozen document with a JSON form."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class SampledFrame(Record):
    """One frame the model sees: its index in the file and its time in seconds."""

    index: int
    timestamp: float


class Problem(Record):
    """Why something failed."""

    code: str
    message: str


class VideoRecord(Record):
    """An uploaded video. Facts are null until the file has been probed."""

    id: str
    sha256: str
    bytes: int
    filename: str
    content_type: str
    created_at: float
    expires_at: float | None = None
    """When the file is to be removed; null: not by time."""
    duration: float | None = None
    width: int | None = None
    height: int | None = None
    fps: float | None = None
    num_frames: int | None = None
    codec: str | None = None
    status: VideoStatus = "uploaded"
    error: Problem | None = None
    frames: tuple[SampledFrame, ...] = ()


class UploadRecord(Record):
    """A file that is uploaded in pieces: `offset` of its `length` bytes are kept."""

    id: str
    length: int
    offset: int = 0
    filename: str
    content_type: str
    metadata: str
    """As the client sent it."""
    parts: tuple[str, ...] = ()
    """The objects that its bytes are in, in order, where they are in a bucket."""
    expires_at: float
    video_id: str | None = None
    """What it became."""
    error: Problem | None = None
    """Why it became none."""

    @property
    def is_whole(self) -> bool:
        """Whether all bytes are there."""
        return self.offset == self.length


class FrameRequest(Record):
    """The frames a session wants the model to see; null takes the model's own."""

    count: int | None = None
    start: float | None = None
    end: float | None = None


class SessionRecord(Record):
    """A conversation about one or more videos."""

    id: str
    video_ids: tuple[str, ...]
    model: str
    system: str
    frames: FrameRequest
    created_at: float


class CachedTokens(Record):
    """What was spared of a prompt: tokens whose keys and values the worker had from another one."""

    cached_tokens: int = 0


class Usage(Record):
    """Tokens, video tokens included."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: CachedTokens = CachedTokens()


class Timings(Record):
    """Where the time of an answer went."""

    time_to_first_token_ms: float | None
    generation_time_ms: float
    mean_itl_ms: float | None
    tokens_per_second: float | None
    total_time_ms: float


class VideoFrames(Record):
    """The frames of one video that an answer was given on."""

    video_id: str
    frames: tuple[SampledFrame, ...]


class MessageRecord(Record):
    """One turn of a session."""

    id: str
    role: Literal["user", "assistant"]
    content: str
    created_at: float
    answer_id: str
    finish_reason: FinishReason | None = None
    usage: Usage | None = None
    timings: Timings | None = None
    frames: tuple[VideoFrames, ...] | None = None


def _sampling_document(params: SamplingParams) -> dict[str, object]:
    fields = asdict(params)
    del fields["logprobs"]  # an answer of a session has none; an earlier release refuses the field
    return fields


Sampling = Annotated[SamplingParams, PlainSerializer(_sampling_document)]
"""How an answer's tokens are chosen; complete, so that any replica can continue it."""


class AnswerRecord(Record):
    """An answer, from the moment its question is accepted."""

    id: str
    session_id: str
    question: str
    sampling: Sampling
    created_at: float
    priority: int = 0
    deadline: float | None = None
    """When the client loses interest, in seconds since 1970."""
    status: AnswerStatus = "in_progress"
    message: MessageRecord | None = None
    error: Problem | None = None

"""The documents of the routes that OpenAI's clients speak to: their names and shapes, in the bounds of this service.

What is not supported here is refused by name, unless it has the value that means "off".
"""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Discriminator, Field, StringConstraints, Tag
from pydantic_core import PydanticCustomError

from model.engine.sampling_params import MAX_LOGPROBS
from service.answers.sampling import WHOLE, MaxTokens, SamplingFields
from service.api.schemas import Reply, RequestBody
from service.ids import file_id
from service.store.records import VideoFrames, VideoRecord

FileId = Annotated[str, StringConstraints(pattern=r"^file-[0-9a-f]{32}$")]
UNSUPPORTED = "unsupported_value"
MAX_CHOICES = 8

_STATUS: dict[str, Literal["uploaded", "processed", "error"]] = {"ready": "processed", "failed": "error"}


def _off(*values: object) -> BeforeValidator:
    """A field that may be null or have one of these values, which change nothing."""

    def check(value: object) -> object:
        if value is not None and value not in values:
            raise PydanticCustomError(UNSUPPORTED, "This server does not support this; leave it out")
        return value

    return BeforeValidator(check)


def _kind_of(value: object) -> str:
    return "text" if isinstance(value, str) else "parts"


_Text = Annotated[str, StringConstraints(max_length=32_000)]
_Name = Annotated[None, _off()]
_EmptyList = Annotated[list[Any], Field(max_length=0)]
_EmptyObject = Annotated[dict[str, Any], Field(max_length=0)]
_TextAlone = Annotated[list[Literal["text"]], Field(min_length=1, max_length=1)]


class TextPart(RequestBody):
    """A piece of text."""

    type: Literal["text"]
    text: _Text


class VideoUrl(RequestBody):
    """A `data:` URL of a video file, an `https:` URL if this server fetches any, or an id: `vid_…` or `file-…`."""

    url: str = Field(min_length=1)


class VideoUrlPart(RequestBody):
    """A video, as vLLM and others name it."""

    type: Literal["video_url"]
    video_url: VideoUrl


class FileReference(RequestBody):
    """An uploaded file by its id, or the file itself as a `data:` URL; one of them."""

    file_id: str | None = Field(default=None, max_length=200)
    file_data: str | None = None
    filename: str | None = Field(default=None, max_length=1024)


class FilePart(RequestBody):
    """A video, as OpenAI's own clients name a file."""

    type: Literal["file"]
    file: FileReference


_TextParts = Annotated[list[TextPart], Field(min_length=1, max_length=64)]
_Parts = Annotated[
    list[Annotated[TextPart | VideoUrlPart | FilePart, Field(discriminator="type")]],
    Field(min_length=1, max_length=64),
]
TextContent = Annotated[Annotated[_Text, Tag("text")] | Annotated[_TextParts, Tag("parts")], Discriminator(_kind_of)]
Content = Annotated[Annotated[_Text, Tag("text")] | Annotated[_Parts, Tag("parts")], Discriminator(_kind_of)]


class SystemMessage(RequestBody):
    """A text before the conversation."""

    role: Literal["system", "developer"]
    content: TextContent
    name: _Name = None


class UserMessage(RequestBody):
    """What the user says, and the videos they show."""

    role: Literal["user"]
    content: Content
    name: _Name = None


class AssistantMessage(RequestBody):
    """An earlier answer; what a client got may be sent back as it came."""

    role: Literal["assistant"]
    content: TextContent
    name: _Name = None
    refusal: Annotated[None, _off()] = None
    audio: Annotated[None, _off()] = None
    function_call: Annotated[None, _off()] = None
    tool_calls: Annotated[_EmptyList | None, _off([])] = None
    annotations: Annotated[_EmptyList | None, _off([])] = None


ChatMessage = Annotated[SystemMessage | UserMessage | AssistantMessage, Field(discriminator="role")]


class StreamOptions(RequestBody):
    """What a stream tells besides."""

    include_usage: bool = Field(default=False, description="One more chunk before the end, with `usage`.")
    include_obfuscation: Annotated[Literal[False] | None, _off(False)] = None


class ResponseFormat(RequestBody):
    """Text; nothing else can be promised of what these models say."""

    type: Annotated[Literal["text"], _off("text")]


class ChatCompletionRequest(SamplingFields, RequestBody):
    """A conversation to continue. Sampling fields that are not given take the model's defaults.

    `top_k`, `min_p`, `repetition_penalty`, `ignore_eos` and `timeout` are not OpenAI's.
    """

    messages: list[ChatMessage] = Field(min_length=1, max_length=1000)
    model: str = Field(min_length=1, max_length=200)
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: Annotated[int, Field(ge=1, le=MAX_CHOICES), WHOLE] | None = Field(
        default=None, description="How many answers to give."
    )
    max_completion_tokens: MaxTokens | None = Field(
        default=None, description="The newer name of `max_tokens`; give one of them."
    )
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63), WHOLE] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_LOGPROBS), WHOLE] | None = Field(
        default=None, description="How many of the likeliest tokens; needs `logprobs`."
    )
    response_format: ResponseFormat | None = None

    timeout: float | None = Field(
        default=None,
        gt=0,
        le=86_400,
        allow_inf_nan=False,
        description="Seconds after which a completion that has not ended ends with `deadline_exceeded`.",
    )

    tools: Annotated[_EmptyList | None, _off([])] = None
    tool_choice: Annotated[Literal["none"] | None, _off("none")] = None
    parallel_tool_calls: Annotated[None, _off()] = None
    functions: Annotated[_EmptyList | None, _off([])] = None
    function_call: Annotated[Literal["none"] | None, _off("none")] = None
    logit_bias: Annotated[_EmptyObject | None, _off({})] = None
    modalities: Annotated[_TextAlone | None, _off(["text"])] = None
    audio: Annotated[None, _off()] = None
    prediction: Annotated[None, _off()] = None
    reasoning_effort: Annotated[Literal["none"] | None, _off("none")] = None
    verbosity: Annotated[None, _off()] = None
    service_tier: Annotated[Literal["auto", "default"] | None, _off("auto", "default")] = None
    store: Annotated[Literal[False] | None, _off(False)] = None
    metadata: Annotated[_EmptyObject | None, _off({})] = None
    user: Annotated[None, _off()] = None
    safety_identifier: Annotated[None, _off()] = None
    moderation: Annotated[None, _off()] = None
    prompt_cache_key: Annotated[None, _off()] = None
    prompt_cache_options: Annotated[None, _off()] = None
    prompt_cache_retention: Annotated[None, _off()] = None
    web_search_options: Annotated[None, _off()] = None


class TopLogprob(Reply):
    """A token that could have stood in a place. `bytes` is its UTF-8; `token` shows what of it is no text as U+FFFD."""

    token: str
    bytes: list[int]
    logprob: float


class TokenLogprob(TopLogprob):
    """A token of the answer, and the likeliest in its place."""

    top_logprobs: list[TopLogprob]


class ChoiceLogprobs(Reply):
    """One entry a token, in order."""

    content: list[TokenLogprob]
    refusal: None = None


class AnswerMessage(Reply):
    """The answer."""

    role: Literal["assistant"] = "assistant"
    content: str
    refusal: None = None


class Choice(Reply):
    """One of the answers."""

    index: int
    message: AnswerMessage
    finish_reason: Literal["stop", "length"]
    logprobs: ChoiceLogprobs | None


class PromptTokensDetails(Reply):
    """What the prompt's tokens are: those the KV cache had already, and those of the videos."""

    cached_tokens: int
    video_tokens: int


class CompletionUsage(Reply):
    """Tokens; those of the videos are among the prompt's."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails


class ChatCompletion(Reply):
    """The answers as a whole. `videos` is not OpenAI's: the ids, and the frames that were looked at."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    system_fingerprint: str
    choices: list[Choice]
    usage: CompletionUsage
    videos: list[VideoFrames]


class ChoiceDelta(Reply):
    """What is new."""

    role: Literal["assistant"] | None = None
    content: str | None = None


class ChunkChoice(Reply):
    """What one of the answers gained."""

    index: int
    delta: ChoiceDelta
    finish_reason: Literal["stop", "length"] | None
    logprobs: ChoiceLogprobs | None


class ChatCompletionChunk(Reply):
    """An event of a stream. `videos` is not OpenAI's and comes in the first chunk that has frames to tell of."""

    id: str
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    created: int
    model: str
    system_fingerprint: str
    choices: list[ChunkChoice]
    usage: CompletionUsage | None = None
    videos: list[VideoFrames] | None = None


class File(Reply):
    """A video, as OpenAI's files are described. `file-…` has the digits of `vid_…`."""

    id: str
    object: Literal["file"] = "file"
    bytes: int
    created_at: int
    expires_at: int | None = None
    filename: str
    purpose: Literal["user_data"] = "user_data"
    status: Literal["uploaded", "processed", "error"]
    status_details: str | None

    @classmethod
    def of(cls, record: VideoRecord) -> "File":
        """The form of a video's record."""
        return cls(
            id=file_id(record.id),
            bytes=record.bytes,
            created_at=int(record.created_at),
            filename=record.filename,
            status=_STATUS.get(record.status, "uploaded"),
            status_details=None if record.error is None else record.error.message,
        )


class FileList(Reply):
    """A page of files."""

    object: Literal["list"] = "list"
    data: list[File]
    first_id: str | None
    last_id: str | None
    has_more: bool


class FileDeleted(Reply):
    """A file was erased, and the video with it."""

    id: str
    object: Literal["file"] = "file"
    deleted: Literal[True] = True

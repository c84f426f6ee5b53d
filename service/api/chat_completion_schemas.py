"""Schemas of OpenAI's chat completions, with the bounds of this service.

A field of OpenAI's that is not supported may be null or have the value that means "off"; any other value is refused.
"""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Discriminator, Field, StringConstraints, Tag
from pydantic_core import PydanticCustomError

from model.engine.sampling_params import MAX_LOGPROBS
from service.answers.sampling import WHOLE, MaxTokens, SamplingFields
from service.api.schemas import Reply, RequestBody
from service.store.records import Moment, VideoFrames

UNSUPPORTED = "unsupported_value"
MAX_CHOICES = 8


def _off(*values: object) -> BeforeValidator:
    """Validate that an unsupported field is null or has one of these values, which mean that it is off."""

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
    """A video, in the form of vLLM and others."""

    type: Literal["video_url"]
    video_url: VideoUrl


class FileReference(RequestBody):
    """Either the id of an uploaded file, or the file itself as a `data:` URL."""

    file_id: str | None = Field(default=None, max_length=200)
    file_data: str | None = None
    filename: str | None = Field(default=None, max_length=1024)


class FilePart(RequestBody):
    """A video, in the form of OpenAI's files."""

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
    """Instructions before the conversation."""

    role: Literal["system", "developer"]
    content: TextContent
    name: _Name = None


class UserMessage(RequestBody):
    """Text and videos from the user."""

    role: Literal["user"]
    content: Content
    name: _Name = None


class AssistantMessage(RequestBody):
    """An earlier answer; a client may send back the message that it received unchanged."""

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
    """Optional parts of a stream."""

    include_usage: bool = Field(default=False, description="Send one more chunk, with `usage`, before the end.")
    include_obfuscation: Annotated[Literal[False] | None, _off(False)] = None


class ResponseFormat(RequestBody):
    """The format of the answer: only text is supported."""

    type: Annotated[Literal["text"], _off("text")]


class ChatCompletionRequest(SamplingFields, RequestBody):
    """A conversation to continue. Sampling fields that are not given take the model's defaults.

    `top_k`, `min_p`, `repetition_penalty`, `ignore_eos` and `timeout` are not OpenAI's.
    """

    messages: list[ChatMessage] = Field(min_length=1, max_length=1000)
    model: Annotated[str, Field(max_length=200)] | None = Field(
        default=None, description="By default the server's default model."
    )
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: Annotated[int, Field(ge=1, le=MAX_CHOICES), WHOLE] | None = Field(
        default=None, description="Number of answers to generate."
    )
    max_completion_tokens: MaxTokens | None = Field(
        default=None, description="The newer name of `max_tokens`; give one of them."
    )
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63), WHOLE] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_LOGPROBS), WHOLE] | None = Field(
        default=None, description="Number of the likeliest tokens to report; requires `logprobs`."
    )
    response_format: ResponseFormat | None = None

    timeout: float | None = Field(
        default=None,
        gt=0,
        le=86_400,
        allow_inf_nan=False,
        description="Seconds after which an unfinished completion ends with `deadline_exceeded`.",
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
    """A candidate token. `bytes` is its UTF-8; in `token`, invalid UTF-8 is shown as U+FFFD."""

    token: str
    bytes: list[int]
    logprob: float


class TokenLogprob(TopLogprob):
    """A token of the answer, and the likeliest candidates at its position."""

    top_logprobs: list[TopLogprob]


class ChoiceLogprobs(Reply):
    """One entry for each token, in order."""

    content: list[TokenLogprob]
    refusal: None = None


class AnswerMessage(Reply):
    """The answer."""

    role: Literal["assistant"] = "assistant"
    content: str
    refusal: None = None


class Choice(Reply):
    """One of the answers. `moments` is not OpenAI's: the times that it names, null if the model has no time axis."""

    index: int
    message: AnswerMessage
    finish_reason: Literal["stop", "length"]
    logprobs: ChoiceLogprobs | None
    moments: list[Moment] | None = None


class PromptTokensDetails(Reply):
    """How many tokens of the prompt came from the KV cache, and how many belong to videos."""

    cached_tokens: int
    video_tokens: int


class CompletionUsage(Reply):
    """Token counts; those of the videos are part of the prompt's."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails


class ChatCompletion(Reply):
    """The complete answers. `videos` is not OpenAI's: the id and the sampled frames of each video."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    system_fingerprint: str
    choices: list[Choice]
    usage: CompletionUsage
    videos: list[VideoFrames]


class ChoiceDelta(Reply):
    """New text."""

    role: Literal["assistant"] | None = None
    content: str | None = None


class ChunkChoice(Reply):
    """New output of one of the answers. `moments` is not OpenAI's; it comes with the `finish_reason`."""

    index: int
    delta: ChoiceDelta
    finish_reason: Literal["stop", "length"] | None
    logprobs: ChoiceLogprobs | None
    moments: list[Moment] | None = None


class ChatCompletionChunk(Reply):
    """An event of a stream. `videos` is not OpenAI's; it comes with the first output after the frames were sampled."""

    id: str
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    created: int
    model: str
    system_fingerprint: str
    choices: list[ChunkChoice]
    usage: CompletionUsage | None = None
    videos: list[VideoFrames] | None = None

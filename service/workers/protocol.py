"""What the API process and a worker say to each other: frozen dataclasses over a pipe, errors as code and message."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from model.engine.sampling_params import SamplingParams
from model.text.conversation import Conversation
from model.video.pixels import PixelSpec
from model.video.spec import FrameSpec
from service.observability.logging import Style
from service.workers.roles import Place, Quantization


@dataclass(frozen=True, kw_only=True, slots=True)
class WorkerConfig:
    """What a worker loads and how large its batches may grow."""

    name: str
    """The model's public name."""
    family: str
    checkpoint: str | None
    places: tuple[Place, ...]
    """All workers of the replica, since those on one device share it."""
    number: int
    """Which of them this one is."""
    dtype: str
    quantization: Quantization | None
    threads: int
    max_num_seqs: int
    max_num_batched_tokens: int
    cuda_graphs: bool
    max_num_batched_frames: int
    log_level: str = "info"
    log_format: Style = "text"

    @property
    def place(self) -> Place:
        """This worker's own."""
        return self.places[self.number]


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelInfo:
    """What the API process has to know of the loaded model."""

    name: str
    family: str
    checkpoint_digest: str
    dtype: str
    """What the encoder computes in."""
    quantization: Quantization | None
    """Bits of the language model's weights; no part of the fingerprint, since the encoder does not see them."""
    frame_spec: FrameSpec
    pixel_spec: PixelSpec
    feature_shape: tuple[int, int]
    num_video_tokens: int
    num_parameters: int
    max_model_len: int
    default_sampling: SamplingParams


# -- to the worker


@dataclass(frozen=True, kw_only=True, slots=True)
class Origin:
    """Whose job it is: the ids that the worker's log lines about it carry, and the span that its own are under."""

    ids: Mapping[str, str] = field(default_factory=dict)
    traceparent: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Encode:
    """Compute the features of one clip: frames uint8 [T, S, S, 3], row-major."""

    job_id: str
    key: str
    frames: bytes
    shape: tuple[int, int, int, int]
    frame_indices: tuple[int, ...]
    timestamps: tuple[float, ...]
    origin: Origin = field(default_factory=Origin)


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckPrompt:
    """Count a prompt's tokens and refuse what can never run, before any work."""

    job_id: str
    conversation: Conversation


@dataclass(frozen=True, kw_only=True, slots=True)
class Generate:
    """Answer a conversation. `features` are packed blobs, one a clip, made under `feature_keys`.

    `output_token_ids` are tokens that the answer has already, from a worker or a replica that died. Keys and values are
    shared with answers of the same `cache_salt` only.
    """

    job_id: str
    conversation: Conversation
    features: tuple[bytes, ...]
    feature_keys: tuple[str, ...]
    cache_salt: str
    params: SamplingParams
    output_token_ids: tuple[int, ...] = ()
    priority: int = 0
    origin: Origin = field(default_factory=Origin)


@dataclass(frozen=True, kw_only=True, slots=True)
class Abort:
    """Stop an answer at the next step."""

    job_id: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Ping:
    """Say that you live; answered at once, also during a step."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Stop:
    """End the worker."""


# -- from the worker


@dataclass(frozen=True, kw_only=True, slots=True)
class Ready:
    """The model is loaded and has done on its own, once, what the worker is for."""

    info: ModelInfo


@dataclass(frozen=True, kw_only=True, slots=True)
class NotLoaded:
    """The model cannot be loaded, and why in a sentence; the worker ends."""

    reason: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Encoded:
    """The packed features of a clip, its part of the seconds the encoder took, and how many clips shared the call."""

    job_id: str
    blob: bytes
    seconds: float
    num_batched_clips: int


@dataclass(frozen=True, kw_only=True, slots=True)
class PromptChecked:
    """The prompt fits."""

    job_id: str
    num_prompt_tokens: int


@dataclass(frozen=True, slots=True)
class LikelyToken:
    """A token in UTF-8, half a character maybe, and the natural logarithm of its probability."""

    token: bytes
    logprob: float


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """How likely a token was, and which were the likeliest in its place."""

    chosen: LikelyToken
    top: tuple[LikelyToken, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Delta:
    """What one answer gained in one step. `logprobs` has one for each of `token_ids`, where they were asked for."""

    job_id: str
    text: str
    token_ids: tuple[int, ...]
    finish_reason: str | None
    num_prompt_tokens: int
    num_cached_tokens: int
    """Of the prompt, how many the KV cache had already."""
    num_output_tokens: int
    running_seconds: float = 0.0
    """Since it got a place in the batch."""
    queue_seconds: float | None = None
    """With its first tokens, filled in by the pool: how long it had waited for that place."""
    logprobs: tuple[TokenLogprobs, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class StepDone:
    """What all answers gained in one step, and how the engine stands after it."""

    deltas: tuple[Delta, ...]
    num_running: int
    num_waiting: int
    kv_cache_usage: float
    """Blocks that sequences hold, of all."""
    num_preemptions: int
    """Since the worker began."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Refused:
    """A job that cannot be done."""

    job_id: str
    code: str
    message: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Pong:
    """The process lives, and this is how much memory it has."""

    resident_bytes: int
    device_bytes: int
    """Of a GPU, held by this process for tensors."""


Command = Encode | CheckPrompt | Generate | Abort | Ping | Stop
Report = Ready | NotLoaded | Encoded | PromptChecked | StepDone | Refused | Pong

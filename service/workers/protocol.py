"""Messages between the API process and a worker: frozen dataclasses over a pipe; errors are a code and a message."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from model.engine.sampling_params import SamplingParams
from model.features import PartSpec
from model.modalities import Modality, modalities_of
from model.text.conversation import Conversation
from model.video.inputs import InputSpec
from model.weight_bits import Quantization
from service.observability.logging import Style
from service.workers.specs import WorkerSpec


@dataclass(frozen=True, kw_only=True, slots=True)
class WorkerConfig:
    """Configuration of one worker: the model it loads, the limits of its batches, its logging."""

    name: str
    """The public name of the model."""
    family: str
    checkpoint: str | None
    """A folder with the family's files; None for the model that ships with the package."""
    workers: Mapping[int, WorkerSpec]
    """All workers of the replica, of all models, by number; those on one device share its memory."""
    number: int
    """The number of this worker."""
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
    def spec(self) -> WorkerSpec:
        """The role and device of this worker."""
        return self.workers[self.number]


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelInfo:
    """Properties of the loaded model that the API process needs."""

    name: str
    family: str
    checkpoint_digest: str
    encoder_digest: str
    """Of the weights and sizes that features depend on; part of their fingerprint."""
    dtype: str
    """The encoder's dtype."""
    quantization: Quantization | None
    """Format of the language model's weights; not part of the fingerprint, since features do not depend on it."""
    inputs: InputSpec | None
    """What the encoder takes of a clip; None for a language model that sees no videos."""
    parts: tuple[PartSpec, ...]
    """The parts of one clip's features."""
    num_video_tokens: int
    """Tokens of one clip in a prompt, all its parts together."""
    time_axis: int | None
    """Positions of the axis on which answers name times; None for a model whose answers name none."""
    num_parameters: int
    max_model_len: int
    default_sampling: SamplingParams

    @property
    def identity(self) -> str:
        """What generates its answers, whatever its name: the family, which writes the prompts, and the checkpoint."""
        return f"{self.family}:{self.checkpoint_digest}"

    @property
    def modalities(self) -> tuple[Modality, ...]:
        """What its conversations are about: videos, with or without their sound, or text alone."""
        return modalities_of(self.inputs)


# -- commands: API process to worker


@dataclass(frozen=True, kw_only=True, slots=True)
class RequestContext:
    """The request that a job belongs to: ids for the worker's log lines and the parent of its spans."""

    ids: Mapping[str, str] = field(default_factory=dict)
    traceparent: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Encode:
    """Compute the features of one clip.

    `frames` holds levels [T, S, S, 3], row-major, in the dtype of the model's pixel spec. `sound` holds the stretches
    float32 [count, samples] of its sound spec, or is None. `timestamps` are in seconds. `key` is stored in the blob.
    """

    job_id: str
    key: str
    frames: bytes
    shape: tuple[int, int, int, int]
    frame_indices: tuple[int, ...]
    timestamps: tuple[float, ...]
    sound: bytes | None = None
    context: RequestContext = field(default_factory=RequestContext)


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckPrompt:
    """Count a prompt's tokens, and refuse a prompt that exceeds the context length."""

    job_id: str
    conversation: Conversation


@dataclass(frozen=True, kw_only=True, slots=True)
class Generate:
    """Generate an answer to a conversation.

    `features` are packed blobs, one per clip, stored under `feature_keys`. `output_token_ids` are the tokens that the
    answer already has, from a worker or replica that died. Only prompts with the same `cache_salt` share blocks of the
    prefix cache.
    """

    job_id: str
    conversation: Conversation
    features: tuple[bytes, ...]
    feature_keys: tuple[str, ...]
    cache_salt: str
    params: SamplingParams
    output_token_ids: tuple[int, ...] = ()
    priority: int = 0
    context: RequestContext = field(default_factory=RequestContext)


@dataclass(frozen=True, kw_only=True, slots=True)
class Abort:
    """Stop generating an answer at the next step."""

    job_id: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Ping:
    """Request a `Pong`; the worker replies at once, even during a step."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Stop:
    """End the worker."""


# -- reports: worker to API process


@dataclass(frozen=True, kw_only=True, slots=True)
class Ready:
    """The model is loaded and warmed up."""

    info: ModelInfo
    device: str
    """The device that the worker runs on: `cpu` or `cuda:N`."""
    num_gpus: int
    """GPUs that torch finds."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LoadFailed:
    """The model cannot be loaded; the worker ends. `reason` is a sentence."""

    reason: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Pong:
    """Reply to a `Ping`, with the memory that the process uses, and what is free on its GPU."""

    resident_bytes: int
    device_bytes: int
    """GPU memory that torch holds for this process; 0 on the CPU."""
    free_device_bytes: int
    """GPU memory that is free for other processes; 0 on the CPU."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Encoded:
    """The packed features of one clip."""

    job_id: str
    blob: bytes
    seconds: float
    """The encoder's time for the batch, divided by the number of its clips."""
    num_batched_clips: int


@dataclass(frozen=True, kw_only=True, slots=True)
class PromptChecked:
    """The prompt fits into the context."""

    job_id: str
    num_prompt_tokens: int


@dataclass(frozen=True, slots=True)
class LikelyToken:
    """A token's bytes, which may be part of a UTF-8 character, and the natural logarithm of its probability."""

    token: bytes
    logprob: float


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """The log probability of the chosen token, and those of the likeliest tokens at its position."""

    chosen: LikelyToken
    top: tuple[LikelyToken, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Delta:
    """Output of one step for one answer; the last one has a `finish_reason`."""

    job_id: str
    text: str
    token_ids: tuple[int, ...]
    finish_reason: str | None
    num_prompt_tokens: int
    num_cached_tokens: int
    """Prompt tokens that were in the prefix cache."""
    num_output_tokens: int
    """Output tokens up to and including this delta."""
    running_seconds: float = 0.0
    """Time since the sequence joined the batch."""
    queue_seconds: float | None = None
    """With the first tokens only, set by the API process: how long the job waited to join the batch."""
    logprobs: tuple[TokenLogprobs, ...] = ()
    """One per token in `token_ids`, if the request asks for them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StepDone:
    """The deltas of one engine step, and the engine's state after it."""

    deltas: tuple[Delta, ...]
    num_running: int
    num_waiting: int
    kv_cache_usage: float
    """Blocks held by sequences, as a fraction of all blocks."""
    num_preemptions: int
    """Since the worker started."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Refused:
    """A job that failed; `code` is one of `service.errors`."""

    job_id: str
    code: str
    message: str


Command = Encode | CheckPrompt | Generate | Abort | Ping | Stop
JobReport = Encoded | PromptChecked | StepDone | Refused
Report = Ready | LoadFailed | Pong | JobReport

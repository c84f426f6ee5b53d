"""The settings of a replica, read once from the command line and the environment (`REELTALK_*`), then frozen.

The string below a field describes it to operators: `reeltalk settings` prints it.
"""

import ipaddress
import os
from collections.abc import Mapping
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path
from typing import Annotated, Literal, Self
from urllib.parse import urlsplit

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from model.modalities import sees_videos
from model.video.spec import MAX_FRAME_COUNT
from model.weight_bits import Quantization
from service.workers.model_spec import (
    Device,
    Dtype,
    ModelDefaults,
    ModelSpec,
    NamedTable,
    parse_model_flags,
    read_model_file,
    with_one_default,
)
from service.workers.specs import WorkerSpec, parse_workers

PREFIX = "REELTALK_"
_OTHER_VARIABLES = {"REELTALK_API_KEY", "REELTALK_CONTRACT_EXAMPLES", "REELTALK_GOLDEN", "REELTALK_URL"}
"""Variables that the client commands and the test suite read; the service accepts and ignores them."""


class SettingsError(Exception):
    """The settings are invalid; the message is one sentence for the operator, on one line."""

    def __init__(self, message: str) -> None:
        super().__init__("".join(char if char.isprintable() else repr(char)[1:-1] for char in message))


class Settings(BaseModel):
    """All settings of a replica. Sizes are in bytes, times in seconds."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        allow_inf_nan=False,
        validate_default=False,
        protected_namespaces=(),
        use_attribute_docstrings=True,
    )

    # -- network and access

    host: str = "127.0.0.1"
    """The address to listen on. Any address other than loopback requires an API key; see `reeltalk keys`."""
    port: int = Field(default=8000, ge=0, le=65535)
    """The TCP port to listen on; 0 takes a free one."""
    allow_unauthenticated: bool = False
    """Allow listening beyond loopback while no API key exists, for example behind a gateway that authenticates. As
    soon as a key exists, every request needs one."""

    # -- storage

    data_dir: Path = Path(".data")
    """The directory of the uploaded files and of the embedded Redis."""
    media_dir: Path | None = None
    """The directory of the uploaded files, if several replicas share one; default: `media` in the data directory."""
    redis_url: SecretStr | None = None
    """The Redis to use, for example redis://host:6379/0. Without it the service starts a redis-server of its own."""

    media_url: str | None = None
    """A bucket for the uploaded files: s3://BUCKET/PREFIX, with `?endpoint=URL` for a bucket that is not Amazon's. The
    media directory then holds only files that are being received or decoded."""

    @field_validator("media_url")
    @classmethod
    def _is_a_bucket(cls, url: str | None) -> str | None:
        if url is not None and (urlsplit(url).scheme != "s3" or not urlsplit(url).netloc):
            raise ValueError("must be of the form s3://BUCKET/PREFIX; for a directory set REELTALK_MEDIA_DIR")
        return url

    media_ttl: int | None = Field(default=None, ge=60)
    """How long an uploaded file is kept; by default until it is deleted."""
    media_max_bytes: int | None = Field(default=None, ge=1)
    """The size of all uploaded files together above which the oldest are removed, those without a session first."""
    retention_interval: float = Field(default=60.0, gt=0)
    """The time between two searches for files to remove."""
    cache_redis_url: SecretStr | None = None
    """A second Redis for cached features only, which may evict keys; by default they are kept in `redis_url`."""

    @field_validator("redis_url", "cache_redis_url")
    @classmethod
    def _is_a_redis(cls, url: SecretStr | None) -> SecretStr | None:
        if url is not None and not url.get_secret_value().startswith(("redis://", "rediss://", "unix://")):
            raise ValueError("must begin with redis://, rediss:// or unix://")
        return url

    redis_max_connections: int = Field(default=16, ge=1)
    """Connections to each Redis for commands; one more follows the logs of answers and videos."""

    # -- models and workers

    models: Annotated[tuple[NamedTable, ...], BeforeValidator(read_model_file)] = ()
    """A TOML file with a table `[models.NAME]` for each model to serve; see docs/deploy.md for its keys. The settings
    below apply to keys that a table leaves out."""
    model: Annotated[tuple[NamedTable, ...], BeforeValidator(parse_model_flags)] = ()
    """Models to serve, separated by commas: NAME=FAMILY:CHECKPOINT; without a checkpoint the family's small model."""
    family: str = "videochat"
    """The family of the model, if neither `models` nor `model` names one; see docs/checkpoints.md for their names."""
    checkpoint: Path | None = None
    """A folder with the family's published files; by default the service runs the family's small model."""
    device: Device = "auto"
    """The device of workers for which `workers` names none: `auto`, `cpu`, `cuda` or `cuda:N`."""
    dtype: Dtype = "auto"
    """The data type of weights and activations; auto: float16 on a GPU, float32 on the CPU."""
    quantize: Quantization | None = None
    """The quantization of the language model's weights; by default they are in `dtype`."""
    workers: str = "1"
    """The number of workers, or their roles: `encode,generate*2`, `encode@cpu,generate@cuda:0`; see docs/deploy.md."""

    @field_validator("workers", mode="before")
    @classmethod
    def _are_workers(cls, text: object, given: ValidationInfo) -> str:
        if not (given.data.get("models") or given.data.get("model")):  # else each model is checked with its own family
            parse_workers(str(text), device="auto", has_encoder=sees_videos(given.data.get("family", "")))
        return str(text)

    threads: int = Field(default=0, ge=0, le=1024)
    """The CPU threads of each worker; 0 divides all cores except one among the workers."""
    max_num_seqs: int = Field(default=32, ge=1, le=4096)
    """The maximum number of sequences in the batch of a worker."""
    max_num_batched_tokens: int = Field(default=2048, ge=16, le=1_000_000)
    """The maximum number of tokens in one engine step."""
    cuda_graphs: bool = True
    """Whether workers on a GPU capture their decode steps as CUDA graphs at start-up; not with `quantize`."""
    max_num_batched_frames: int = Field(default=256, ge=1, le=100_000)
    """The maximum number of frames, of all clips together, in one call of the encoder."""

    # -- uploads, and videos fetched by URL

    max_upload_bytes: int = Field(default=2 << 30, ge=1)
    """The maximum size of an uploaded or fetched file."""
    max_inline_bytes: int = Field(default=32 << 20, ge=1024)
    """The maximum size of the body of a chat completion, which may contain videos as data URLs."""
    upload_expiry: int = Field(default=24 * 3600, ge=60)
    """How long a resumable upload is kept while it receives no bytes."""
    upload_idle_timeout: float = Field(default=30.0, gt=0)
    """How long to wait for the next bytes of an upload before it is refused."""
    fetch_hosts: tuple[str, ...] = ()
    """Hosts from which videos may be fetched by URL, separated by commas: `name`, `*.name` or `*`, with an optional
    `:port`. By default none."""
    fetch_networks: tuple[IPv4Network | IPv6Network, ...] = ()
    """Private networks from which videos may be fetched, separated by commas: `10.1.0.0/16`."""
    fetch_http: bool = False
    """Whether to fetch from http:// URLs too; use it only in tests and trusted networks."""
    fetch_timeout: float = Field(default=120.0, gt=0)
    """The maximum time to fetch a URL."""

    @field_validator("fetch_hosts", "fetch_networks", mode="before")
    @classmethod
    def _by_commas(cls, value: object) -> object:
        return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value

    # -- limits of a video, and its decoding

    max_video_seconds: float = Field(default=4 * 3600, gt=0)
    """The maximum duration of a video."""
    max_video_side: int = Field(default=8192, ge=1)
    """The maximum width and height of a video, in pixels."""
    max_video_pixels: int = Field(default=4096 * 2304, ge=1)
    """The maximum number of pixels of a frame."""
    max_video_frames: int = Field(default=2_000_000, ge=1)
    """The maximum number of frames of a video."""
    max_frame_count: int = Field(default=MAX_FRAME_COUNT, ge=1, le=MAX_FRAME_COUNT)
    """The maximum number of frames that a session may sample from a video."""
    max_videos_per_session: int = Field(default=4, ge=1, le=64)
    """The maximum number of videos in a session."""
    decode_timeout: float = Field(default=60.0, gt=0)
    """The maximum time to decode a video; then the decode process is killed."""
    decode_concurrency: int = Field(default=2, ge=1, le=64)
    """The number of videos that are decoded at the same time."""
    decode_sandbox: Literal["auto", "required"] = "auto"
    """Whether to refuse to start (`required`) or only to warn (`auto`) if the kernel cannot filter the system calls of
    decode processes."""
    max_pending_videos: int = Field(default=64, ge=1)
    """The number of videos being received, decoded or encoded at which more are refused with 503."""

    # -- limits of an API key, unless the key has limits of its own

    key_requests_per_minute: int = Field(default=600, ge=1)
    """The requests that one API key may make in a minute."""
    key_concurrent_answers: int = Field(default=16, ge=1)
    """The answers that one API key may have running or waiting, at all replicas together."""
    key_stored_bytes: int = Field(default=20 << 30, ge=1)
    """The size of all videos of a key's tenant above which the key cannot upload more."""
    key_max_priority: int = Field(default=0, ge=-9, le=9)
    """The highest priority that an API key may request."""

    # -- answers

    max_pending_answers: int = Field(default=128, ge=1)
    """The number of answers running or waiting at which more are refused with 503."""
    max_queued_sequences: int = Field(default=128, ge=1)
    """The number of sequences that may wait for their first token; an answer has one, or one for each beam."""
    max_queued_tokens: int = Field(default=1 << 18, ge=1)
    """The number of prompt tokens that those sequences may have together."""
    answer_timeout: float = Field(default=600.0, gt=0)
    """The maximum time of an answer; a client can request less. An answer that takes longer is stopped."""
    encode_timeout: float = Field(default=600.0, gt=0)
    """The maximum time to wait until a worker has encoded a video."""
    worker_timeout: float = Field(default=30.0, gt=0)
    """How long a worker may not respond before it is replaced."""
    disconnect_grace: float = Field(default=10.0, ge=0)
    """How long an answer continues after its last reader has disconnected."""
    lease_seconds: float = Field(default=10.0, gt=0.5)
    """How long after the failure of a replica another one takes over its answers."""
    idempotency_ttl: int = Field(default=24 * 3600, ge=60)
    """How long the result of a request with an `Idempotency-Key` is kept."""
    feature_ttl: int = Field(default=7 * 24 * 3600, ge=1)
    """How long the features of a video are cached after their last use."""

    # -- shutdown and logs

    drain_notice: float = Field(default=5.0, ge=0)
    """How long a replica that is shutting down still accepts requests while `/readyz` answers 503."""
    shutdown_timeout: int = Field(default=10, ge=1)
    """How long running answers may then continue; after that other replicas take them over."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """The lowest level of the messages that are logged."""
    log_format: Literal["text", "json"] = "text"
    """Whether log lines are text for people or JSON for a log collector."""

    @model_validator(mode="after")
    def _has_one_default(self) -> Self:
        self.model_specs  # noqa: B018  refuses two models of one name
        return self

    @property
    def model_specs(self) -> tuple[ModelSpec, ...]:
        """The models to serve, one of them the default: that of `family` and `checkpoint`, the file's, the flags'.

        The first of these is left out if neither field is set and there are others.
        """
        others = [
            self.model_defaults.complete(name, table, is_default=table.default)
            for name, table in (*self.models, *self.model)
        ]
        is_single = not others or bool({"family", "checkpoint"} & self.model_fields_set)
        return with_one_default([*([self._single_model] if is_single else []), *others])

    @property
    def model_defaults(self) -> ModelDefaults:
        """The values of the keys that a model's table leaves out."""
        return ModelDefaults(
            dtype=self.dtype,
            quantization=self.quantize,
            device=self.device,
            workers=self.workers,
            max_num_seqs=self.max_num_seqs,
        )

    @property
    def _single_model(self) -> ModelSpec:
        return ModelSpec(
            name="tiny" if self.checkpoint is None else self.checkpoint.resolve().name,
            family=self.family,
            checkpoint=self.checkpoint,
            dtype=self.dtype,
            quantization=self.quantize,
            workers=parse_workers(self.workers, device=self.device, has_encoder=sees_videos(self.family)),
            max_num_seqs=self.max_num_seqs,
        )

    @property
    def is_loopback(self) -> bool:
        """Whether the service listens on loopback only."""
        return is_loopback(self.host)

    @property
    def may_be_open(self) -> bool:
        """Whether requests without an API key are allowed as long as no key has been created."""
        return self.is_loopback or self.allow_unauthenticated

    def threads_for(self, num_workers: int) -> int:
        """CPU threads of each worker, at least one, in a replica with this many."""
        num_cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        return self.threads or max(1, (num_cores - 1) // num_workers)

    @property
    def worker_specs(self) -> tuple[WorkerSpec, ...]:
        """The role and device of each worker, of all models."""
        return tuple(worker for spec in self.model_specs for worker in spec.workers)

    @property
    def media_path(self) -> Path:
        """The directory of the uploaded files."""
        return self.media_dir or self.data_dir / "media"


def load_settings(
    overrides: Mapping[str, object] | None = None, *, environ: Mapping[str, str] | None = None
) -> Settings:
    """Load the settings: `overrides` from the command line, then the environment, then the defaults.

    Raises:
        SettingsError: an unknown `REELTALK_*` variable, or an invalid value.
    """
    names = os.environ if environ is None else environ
    known = {PREFIX + field.upper() for field in Settings.model_fields}
    unknown = sorted(n for n in names if n.upper().startswith(PREFIX) and n.upper() not in known | _OTHER_VARIABLES)
    if unknown:
        raise SettingsError(f"{unknown[0]} is not a setting of Reeltalk; see `reeltalk settings` for the list.")
    given = {k: v for k, v in (overrides or {}).items() if v is not None}
    try:
        settings = Settings.model_validate(_from_environ(names) | given)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        name = PREFIX + ".".join(str(part) for part in first["loc"]).upper() if first["loc"] else "The settings"
        raise SettingsError(f"{name}: {first['msg'].removeprefix('Value error, ')}.") from None
    return settings


def check_default_checkpoint(settings: Settings) -> None:
    """Refuse to start with a default model whose folder does not exist, before anything is started.

    Another model without a folder is a problem that `/readyz` shows: it must not end the service that has others.

    Raises:
        SettingsError: there is no such folder.
    """
    [default] = [spec for spec in settings.model_specs if spec.is_default]
    if default.checkpoint is not None and not default.checkpoint.is_dir():
        raise SettingsError(
            f"The default model {default.name!r} cannot be loaded: there is no folder {str(default.checkpoint)!r}."
        )


def _from_environ(names: Mapping[str, str]) -> dict[str, str]:
    fields = {PREFIX + field.upper(): field for field in Settings.model_fields}
    return {fields[n.upper()]: value for n, value in names.items() if n.upper() in fields and value != ""}


def is_loopback(host: str) -> bool:
    """Whether a host name or address is a loopback address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False

"""Configuration: read once from the environment (`REELTALK_*`) and the command line, then frozen."""

import ipaddress
import os
from collections.abc import Mapping
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, field_validator

from model.video.spec import MAX_FRAME_COUNT, VideoLimits
from service.videos.fetching import FetchPolicy
from service.workers.roles import Place, Quantization, parse_places

PREFIX = "REELTALK_"
_FOREIGN = {"REELTALK_API_KEY", "REELTALK_CONTRACT_EXAMPLES", "REELTALK_GOLDEN", "REELTALK_URL"}
"""Read by the commands that talk to a service, and by the test suite; not by the service."""


class SettingsError(Exception):
    """The configuration cannot be used; the message is one sentence for the operator."""


class Settings(BaseModel):
    """Every knob of a replica. Sizes are in bytes, times in seconds."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, validate_default=False, protected_namespaces=()
    )

    host: str = "127.0.0.1"
    port: int = Field(default=8000, ge=0, le=65535)
    allow_unauthenticated: bool = False
    """Listen beyond loopback although there is no API key, so that nobody has to prove who they are (behind a gateway
    that does). Once there is a key, everybody needs one all the same."""
    data_dir: Path = Path(".data")
    """Uploads and the embedded Redis live here."""
    media_dir: Path | None = None
    """Uploaded files, when several replicas share one directory; default: `media` in the data directory."""
    redis_url: SecretStr | None = None
    """A Redis to use, e.g. redis://host:6379/0. Without it the service starts a redis-server of its own."""

    media_url: str | None = None
    """A bucket for the uploaded files, s3://BUCKET/PREFIX, with `?endpoint=URL` where it is not Amazon's. The media
    directory then holds only what is coming in or being decoded."""

    @field_validator("media_url")
    @classmethod
    def _is_a_bucket(cls, url: str | None) -> str | None:
        if url is not None and (urlsplit(url).scheme != "s3" or not urlsplit(url).netloc):
            raise ValueError("it looks like s3://BUCKET/PREFIX; for a directory set REELTALK_MEDIA_DIR")
        return url

    media_ttl: int | None = Field(default=None, ge=60)
    """How long an uploaded file is kept; without it, until it is erased."""
    media_max_bytes: int | None = Field(default=None, ge=1)
    """How much all uploaded files may take. Beyond that the oldest go first, those in sessions after all others."""
    retention_interval: float = Field(default=60.0, gt=0)
    """Seconds between two looks for files that are kept no longer."""
    cache_redis_url: SecretStr | None = None
    """Another Redis for features alone, which may evict and forget; without it they lie with everything else."""

    @field_validator("redis_url", "cache_redis_url")
    @classmethod
    def _is_a_redis(cls, url: SecretStr | None) -> SecretStr | None:
        if url is not None and not url.get_secret_value().startswith(("redis://", "rediss://", "unix://")):
            raise ValueError("it begins with redis://, rediss:// or unix://")
        return url

    redis_max_connections: int = Field(default=16, ge=1)
    """Connections to each Redis for commands; one more follows the logs of answers and videos."""

    family: str = "videochat"
    checkpoint: Path | None = None
    """A folder with the family's published files; without it the family's small model is served."""
    device: str = Field(default="auto", pattern=r"^(auto|cpu|cuda(:\d{1,3})?)$")
    """Of workers that name none of their own: `auto`, `cpu`, `cuda` or `cuda:N`."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """What everything computes in; auto: float16 on a GPU, float32 on the CPU."""
    quantize: Quantization | None = None
    """Bits of the language model's weights; without it they are left in `dtype`."""
    workers: str = "1"
    """A number, or roles: `encode,generate*2`, `encode@cpu,generate@cuda:0`; see docs/deploy.md."""

    @field_validator("workers", mode="before")
    @classmethod
    def _are_workers(cls, text: object) -> str:
        parse_places(str(text), device="auto")
        return str(text)

    threads: int = Field(default=0, ge=0, le=1024)
    """CPU threads of each worker; 0 divides all cores but one among the workers, and leaves that one to the rest."""
    max_num_seqs: int = Field(default=32, ge=1, le=4096)
    max_num_batched_tokens: int = Field(default=2048, ge=16, le=1_000_000)
    cuda_graphs: bool = True
    """Whether a worker on a GPU captures its decode steps when it starts; quantised models never are."""
    max_num_batched_frames: int = Field(default=256, ge=1, le=100_000)
    """Frames of all clips in one call of the encoder."""

    max_upload_bytes: int = Field(default=2 << 30, ge=1)
    max_inline_bytes: int = Field(default=32 << 20, ge=1024)
    """The largest body of a chat completion, which may carry videos as data URLs."""
    upload_expiry: int = Field(default=24 * 3600, ge=60)
    """How long a resumable upload that gets no bytes is kept."""
    upload_idle_timeout: float = Field(default=30.0, gt=0)
    """How long an upload may send nothing."""
    fetch_hosts: tuple[str, ...] = ()
    """Hosts from which videos are fetched by URL, by commas: `name`, `*.name` or `*`, each perhaps with `:port`."""
    fetch_networks: tuple[IPv4Network | IPv6Network, ...] = ()
    """Networks that may be fetched from although they are not public, by commas: `10.1.0.0/16`."""
    fetch_http: bool = False
    """Fetch from http:// URLs too: for tests, and for networks that are one's own."""
    fetch_timeout: float = Field(default=120.0, gt=0)
    """How long fetching a URL may take in all."""

    @field_validator("fetch_hosts", "fetch_networks", mode="before")
    @classmethod
    def _by_commas(cls, value: object) -> object:
        return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value

    max_video_seconds: float = Field(default=4 * 3600, gt=0)
    max_video_side: int = Field(default=8192, ge=1)
    max_video_pixels: int = Field(default=4096 * 2304, ge=1)
    max_video_frames: int = Field(default=2_000_000, ge=1)
    max_frame_count: int = Field(default=MAX_FRAME_COUNT, ge=1, le=MAX_FRAME_COUNT)
    """The most frames a session may ask to sample."""
    max_videos_per_session: int = Field(default=4, ge=1, le=64)
    decode_timeout: float = Field(default=60.0, gt=0)
    decode_concurrency: int = Field(default=2, ge=1, le=64)
    decode_sandbox: Literal["auto", "required"] = "auto"
    """Required: do not start where the kernel does not filter what a decode child may do."""
    max_pending_videos: int = Field(default=64, ge=1)
    """Videos being received, decoded or encoded at once; more are refused with 503."""

    key_requests_per_minute: int = Field(default=600, ge=1)
    """Requests that one API key may make in a minute, unless the key says otherwise; as the next three."""
    key_concurrent_answers: int = Field(default=16, ge=1)
    """Answers that one API key may have running or waiting, at all replicas together."""
    key_stored_bytes: int = Field(default=20 << 30, ge=1)
    """Bytes of videos that an API key's tenant may have stored when the key uploads."""
    key_max_priority: int = Field(default=0, ge=-9, le=9)
    """The highest priority that an API key may ask for."""

    max_pending_answers: int = Field(default=128, ge=1)
    """Answers running or waiting at once; more are refused with 503."""
    max_queued_sequences: int = Field(default=128, ge=1)
    """Sequences that may wait for their first token; an answer has one, or as many as it has beams."""
    max_queued_tokens: int = Field(default=1 << 18, ge=1)
    """Tokens that the prompts of those sequences may have together."""
    answer_timeout: float = Field(default=600.0, gt=0)
    encode_timeout: float = Field(default=600.0, gt=0)
    worker_timeout: float = Field(default=30.0, gt=0)
    """How long a worker may give no sign of life before it is replaced."""
    disconnect_grace: float = Field(default=10.0, ge=0)
    """How long an answer runs on after its last reader left."""
    lease_seconds: float = Field(default=10.0, gt=0.5)
    idempotency_ttl: int = Field(default=24 * 3600, ge=60)
    """How long an `Idempotency-Key` is remembered."""
    feature_ttl: int = Field(default=7 * 24 * 3600, ge=1)
    drain_notice: float = Field(default=5.0, ge=0)
    """How long a replica that was told to stop still takes everything, while `/readyz` says 503 to balancers."""
    shutdown_timeout: int = Field(default=10, ge=1)
    """How long answers may run on after that; then other replicas go on with them."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_format: Literal["text", "json"] = "text"

    @property
    def model(self) -> str:
        """The public name of what is served."""
        return "tiny" if self.checkpoint is None else self.checkpoint.resolve().name

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can reach the service."""
        return is_loopback(self.host)

    @property
    def may_be_open(self) -> bool:
        """Whether the service may do without keys, as long as there has never been one."""
        return self.is_loopback or self.allow_unauthenticated

    @property
    def threads_per_worker(self) -> int:
        """CPU threads of each worker, at least one."""
        num_cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        return self.threads or max(1, (num_cores - 1) // len(self.places))

    @property
    def places(self) -> tuple[Place, ...]:
        """The workers, each with its role and device."""
        return parse_places(self.workers, device=self.device)

    @property
    def video_limits(self) -> VideoLimits:
        """What a file may declare before it is opened any further."""
        return VideoLimits(
            max_side=self.max_video_side,
            max_pixels=self.max_video_pixels,
            max_frames=self.max_video_frames,
            max_duration=self.max_video_seconds,
        )

    @property
    def fetch_policy(self) -> FetchPolicy:
        """What may be fetched by URL."""
        return FetchPolicy(
            hosts=self.fetch_hosts,
            networks=self.fetch_networks,
            http=self.fetch_http,
            max_bytes=self.max_upload_bytes,
            timeout=self.fetch_timeout,
        )

    @property
    def media_path(self) -> Path:
        """The directory of the uploaded files."""
        return self.media_dir or self.data_dir / "media"


def load_settings(
    overrides: Mapping[str, object] | None = None, *, environ: Mapping[str, str] | None = None
) -> Settings:
    """The settings of this process: the command line's overrides, then the environment, then the defaults.

    Raises:
        SettingsError: an unknown `REELTALK_*` variable, a value out of bounds.
    """
    names = os.environ if environ is None else environ
    known = {PREFIX + field.upper() for field in Settings.model_fields}
    unknown = sorted(n for n in names if n.upper().startswith(PREFIX) and n.upper() not in known | _FOREIGN)
    if unknown:
        raise SettingsError(f"{unknown[0]} is not a setting of Reeltalk; see `reeltalk settings` for the list.")
    given = {k: v for k, v in (overrides or {}).items() if v is not None}
    try:
        settings = Settings.model_validate(_from_environ(names) | given)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        name = PREFIX + ".".join(str(part) for part in first["loc"]).upper()
        raise SettingsError(f"{name}: {first['msg'].removeprefix('Value error, ')}.") from None
    return settings


def _from_environ(names: Mapping[str, str]) -> dict[str, str]:
    fields = {PREFIX + field.upper(): field for field in Settings.model_fields}
    return {fields[n.upper()]: value for n, value in names.items() if n.upper() in fields and value != ""}


def is_loopback(host: str) -> bool:
    """Whether a name or address is this machine's own, and no other's."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False

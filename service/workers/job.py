"""A job: one command that runs on a worker, and what is known of its progress. No I/O."""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from service.workers.process import WorkerProcess
from service.workers.protocol import CheckPrompt, Delta, Encode, Encoded, Generate, ModelInfo, PromptChecked, Refused
from service.workers.specs import WorkerSpec

MAX_DEATHS = 3
"""Deaths of its workers, with no output in between, after which a job fails. Two can have an outside cause, such as the
kernel's out-of-memory killer."""
_SUSPECT_DEATHS = 2
_ENCODE_LOAD = 4.0
"""Load of an encode job, in sequences: all other work of its worker waits for it."""
_CHARACTERS_PER_TOKEN = 4

Sink = Callable[[Delta | Refused], None]
"""Receives the outputs of a `Generate` job, in order, each in its own callback of the event loop."""


@dataclass(slots=True, eq=False, kw_only=True)
class Job:
    """A command that has not ended. A `Generate` job has a `sink`, any other job has a `future`."""

    command: Encode | CheckPrompt | Generate
    future: asyncio.Future[Encoded | PromptChecked] | None = None
    sink: Sink | None = None
    prefixes: tuple[bytes, ...] = ()
    """Digests of the prompt's prefixes, see `routing`."""
    worker: WorkerProcess | None = None
    """The worker that the job was sent to; None while it waits for one."""
    output_token_ids: list[int] = field(default_factory=list)
    num_cached_tokens: int | None = None
    """Prompt tokens from the prefix cache at the first output; a restarted job finds its own blocks there too."""
    num_deaths: int = 0
    """Workers that died while they had the job, since its last output."""
    is_aborted: bool = False
    submitted_at: float = field(default_factory=time.monotonic)

    @property
    def is_suspect(self) -> bool:
        """Whether the job may be what killed its workers."""
        return self.num_deaths >= _SUSPECT_DEATHS

    @property
    def num_seqs(self) -> int:
        """Sequences that the job takes in an engine."""
        return self.command.params.num_beams if isinstance(self.command, Generate) else 0

    def can_run_on(self, spec: WorkerSpec) -> bool:
        """Whether a worker with this role can run the job."""
        return spec.encodes if isinstance(self.command, Encode) else spec.generates

    def command_to_send(self) -> Encode | CheckPrompt | Generate:
        """The command, with the tokens that an answer already has."""
        if isinstance(self.command, Generate):
            return replace(self.command, output_token_ids=tuple(self.output_token_ids))
        return self.command

    def load(self, info: ModelInfo) -> float:
        """Estimated load on a worker, in sequences; a sequence of `max_model_len` tokens counts as two."""
        match self.command:
            case Encode():
                return _ENCODE_LOAD
            case Generate(conversation=conversation):
                num_characters = len(conversation.system) + sum(len(turn.text) for turn in conversation.turns)
                num_tokens = num_characters // _CHARACTERS_PER_TOKEN + len(self.output_token_ids)
                num_tokens += len(conversation.clips) * info.num_video_tokens
                return self.num_seqs * (1 + num_tokens / info.max_model_len)
            case CheckPrompt():
                return 0.0

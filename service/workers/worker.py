"""The worker: one process on one device that encodes clips and answers questions. The service's one door to torch."""

import gc
import os
import queue
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import structlog
import torch

from model.clip_encoder import Frames, encode_clips
from model.engine.config import EngineConfig, PromptTooLong, check_length
from model.engine.engine import Engine
from model.engine.output import Logprobs, Output
from model.engine.sampling_params import InvalidSampling, SamplingParams
from model.engine.sequence import TextSegment, VideoSegment
from model.families import load_family
from model.family import EncodedClip, Family, build_prompt, count_prompt_tokens
from model.features import pack, unpack
from model.memory import within_share
from model.text.conversation import Clip, Conversation, Turn
from model.weights import WeightsError
from service.observability import tracing
from service.observability.logging import configure_logging
from service.workers.protocol import (
    Abort,
    CheckPrompt,
    Command,
    Delta,
    Encode,
    Encoded,
    Generate,
    LikelyToken,
    ModelInfo,
    NotLoaded,
    Origin,
    Ping,
    Pong,
    PromptChecked,
    Ready,
    Refused,
    Report,
    StepDone,
    Stop,
    TokenLogprobs,
    WorkerConfig,
)
from service.workers.roles import check_device, resolve, share

_log = structlog.get_logger(__name__)

_PREFILL_BESIDE_DECODE = {"cuda": 512, "cpu": 24}
"""Tokens of prompts in a step in which others get their next token, so that they get it soon."""


class Worker:
    """Takes commands from a pipe between two engine steps, and reports what each step gained.

    Raises:
        ValueError: the model cannot be loaded, or has no room; the message is a sentence.
    """

    def __init__(self, connection: "Connection[Report, Command]", config: WorkerConfig) -> None:
        self._connection = connection
        self._send_lock = threading.Lock()
        self._inbox: queue.SimpleQueue[Command] = queue.SimpleQueue()
        self._config = config
        num_gpus = torch.cuda.device_count()
        places = resolve(config.places, num_gpus=num_gpus)
        check_device(places[config.number], num_gpus=num_gpus)
        self._family = load_family(
            config.family,
            checkpoint=None if config.checkpoint is None else Path(config.checkpoint),
            device=places[config.number].device,
            dtype=None if config.dtype == "auto" else getattr(torch, config.dtype),
            quantization=config.quantization,
            role=config.place.role,
        )
        self._engine_config = EngineConfig(
            max_num_seqs=config.max_num_seqs,
            max_model_len=self._family.max_model_len,
            max_num_batched_tokens=config.max_num_batched_tokens,
            cuda_graphs=config.cuda_graphs,
            max_prefill_beside_decode=_PREFILL_BESIDE_DECODE[self._family.device.type],
        )
        self._engine: Engine | None = None
        if config.place.generates:
            language_model = self._family.language_model
            within = within_share(self._engine_config, language_model, share=share(places, config.number))
            self._engine = Engine(language_model, self._family.tokenizer, within)
        self._clips: list[Encode] = []
        self._origins: dict[str, Origin] = {}
        self._prefilled: dict[str, float] = {}

    def run(self) -> None:
        """Serve until the pipe ends or a `Stop` comes."""
        threading.Thread(target=self._listen, name="commands", daemon=True).start()
        self._report(Ready(info=_describe(self._family, self._config)))
        while self._obey(self._take()):
            if batch := self._next_batch():
                self._encode(batch)
            if self._engine is not None and self._engine.has_work:
                self._step(self._engine)

    # -- commands

    def _listen(self) -> None:
        while True:
            try:
                command = self._connection.recv()
            except (EOFError, OSError):
                os._exit(0)  # the API process is gone, and with it whoever could want an answer
            if isinstance(command, CheckPrompt):
                self._report(self._check(command))  # here, so that it waits for no step
            elif isinstance(command, Ping):
                self._report(self._pong())
            else:
                self._inbox.put(command)

    def _take(self) -> list[Command]:
        has_work = self._clips or (self._engine is not None and self._engine.has_work)
        commands = [] if has_work else [self._inbox.get()]
        while True:
            try:
                commands.append(self._inbox.get_nowait())
            except queue.Empty:
                return commands

    def _obey(self, commands: list[Command]) -> bool:
        for command in commands:
            match command:
                case Stop():
                    return False
                case Encode():
                    self._clips.append(command)
                case Generate():
                    self._add(command)
                case Abort():
                    if self._engine is not None:
                        self._engine.abort(command.job_id)
        return True

    def _check(self, command: CheckPrompt) -> Report:
        try:
            num_tokens = count_prompt_tokens(self._family, command.conversation)
            check_length(num_tokens, self._engine_config)
        except PromptTooLong as error:
            return Refused(job_id=command.job_id, code="context_length_exceeded", message=str(error))
        except Exception:  # noqa: BLE001  it would end the one thread that takes commands, and the worker would go deaf
            _log.exception("question_refused")
            return Refused(job_id=command.job_id, code="engine_error", message="The model cannot take this question.")
        return PromptChecked(job_id=command.job_id, num_prompt_tokens=num_tokens)

    def _add(self, command: Generate) -> None:
        try:
            assert self._engine is not None, "the pool sends questions only where there is an engine"
            clips = [
                EncodedClip(torch.from_numpy(unpack(blob, key=key, shape=self._family.feature_shape)), key)
                for blob, key in zip(command.features, command.feature_keys, strict=True)
            ]
            self._engine.add_request(
                command.job_id,
                self._prompt(command.conversation, clips),
                self._checked(command.params),
                output_token_ids=command.output_token_ids,
                priority=command.priority,
                cache_salt=command.cache_salt,
            )
            self._origins[command.job_id] = command.origin
        except PromptTooLong as error:
            self._report(Refused(job_id=command.job_id, code="context_length_exceeded", message=str(error)))
        except InvalidSampling as error:
            self._report(Refused(job_id=command.job_id, code="invalid_value", message=str(error)))
        except Exception:  # noqa: BLE001  one bad question must not end the worker
            _log.exception("question_refused", **command.origin.ids)
            message = "The model cannot take this question."
            self._report(Refused(job_id=command.job_id, code="engine_error", message=message))

    # -- work

    def _next_batch(self) -> list[Encode]:
        """The clip that has waited longest, and with it all others of its shape within the budget of frames.

        One alone while answers are given here: each of them waits as long as the encoder takes.
        """
        if not self._clips:
            return []
        shape = self._clips[0].shape
        most = max(1, self._config.max_num_batched_frames // max(1, shape[0]))
        if self._engine is not None and self._engine.has_work:
            most = 1
        batch = [clip for clip in self._clips if clip.shape == shape][:most]
        taken = {clip.job_id for clip in batch}
        self._clips = [clip for clip in self._clips if clip.job_id not in taken]
        return batch

    def _encode(self, batch: list[Encode]) -> None:
        start = time.perf_counter()
        frames = {clip.job_id: pictures for clip in batch if (pictures := _frames(clip)) is not None}
        features = dict(zip(frames, encode_clips(self._family, list(frames.values())) if frames else (), strict=True))
        seconds = (time.perf_counter() - start) / len(batch)
        for clip in batch:
            encoded = features.get(clip.job_id)
            if encoded is None:
                self._report(Refused(job_id=clip.job_id, code="encode_failed", message="The video cannot be encoded."))
                continue
            blob = pack(encoded, key=clip.key, frame_indices=clip.frame_indices, timestamps=clip.timestamps)
            self._report(Encoded(job_id=clip.job_id, blob=blob, seconds=seconds, num_batched_clips=len(batch)))
            if clip.origin.traceparent is not None:
                numbers = {"reeltalk.batched_clips": len(batch)}
                tracing.record("encoder", numbers, seconds=seconds * len(batch), parent=clip.origin.traceparent)
            _log.info("clip_encoded", **clip.origin.ids, encode_ms=_ms(seconds), num_batched_clips=len(batch))

    def _step(self, engine: Engine) -> None:
        deltas = tuple(_delta(output, self._family.tokenizer.token_bytes) for output in engine.step())
        self._report(
            StepDone(
                deltas=deltas,
                num_running=engine.num_running,
                num_waiting=engine.num_waiting,
                kv_cache_usage=engine.num_held_blocks / engine.num_blocks,
                num_preemptions=engine.num_preemptions,
            )
        )
        for delta in deltas:
            self._trace(delta)
            if delta.finish_reason is not None:
                self._log_end(delta)

    def _trace(self, delta: Delta) -> None:
        """Prefill is over with the first token, decode with the last."""
        origin = self._origins.get(delta.job_id)
        if origin is None or origin.traceparent is None:
            return
        if delta.token_ids and delta.job_id not in self._prefilled:
            self._prefilled[delta.job_id] = delta.running_seconds
            numbers = {
                "reeltalk.prompt_tokens": delta.num_prompt_tokens,
                "reeltalk.cached_tokens": delta.num_cached_tokens,
            }
            tracing.record("prefill", numbers, seconds=delta.running_seconds, parent=origin.traceparent)
        if delta.finish_reason is not None:
            prefill_seconds = self._prefilled.pop(delta.job_id, None)
            if prefill_seconds is not None:
                numbers = {"reeltalk.output_tokens": delta.num_output_tokens}
                seconds = delta.running_seconds - prefill_seconds
                tracing.record("decode", numbers, seconds=seconds, parent=origin.traceparent)

    def _log_end(self, delta: Delta) -> None:
        origin = self._origins.pop(delta.job_id, None)
        if origin is not None:
            _log.info(
                "answer_generated",
                **origin.ids,
                finish_reason=delta.finish_reason,
                num_prompt_tokens=delta.num_prompt_tokens,
                num_output_tokens=delta.num_output_tokens,
                running_ms=_ms(delta.running_seconds),
            )

    def work_once(self) -> None:
        """Encode a black clip, answer a question about it: after this, real ones work, and caches are warm.

        Raises:
            ValueError: it cannot encode one.
        """
        spec, pixels = self._family.frame_spec, self._family.pixel_spec
        features = np.zeros(self._family.feature_shape, dtype=np.float16)
        if self._config.place.encodes:
            [encoded] = encode_clips(
                self._family, [np.zeros((spec.count, pixels.size, pixels.size, 3), dtype=np.uint8)]
            )
            if encoded is None:
                raise WeightsError("The model cannot encode a black clip; its weights are damaged.")
            features = encoded
        if self._engine is None:
            return
        question = Conversation(
            clips=(Clip(frame_indices=tuple(range(spec.count)), fps=1.0),),
            turns=(Turn(role="user", text="What is this?"),),
        )
        prompt = self._prompt(question, [EncodedClip(torch.from_numpy(features), "warm-up")])
        self._engine.add_request("warm-up", prompt, SamplingParams(max_tokens=2))
        while self._engine.has_work:
            self._engine.step()

    def _prompt(self, conversation: Conversation, clips: Sequence[EncodedClip]) -> Sequence[TextSegment | VideoSegment]:
        with torch.inference_mode():
            return build_prompt(self._family, conversation, clips)

    def _checked(self, params: SamplingParams) -> SamplingParams:
        """The parameters with every bound checked anew: what came through a pipe was made without asking.

        The template's own strings end every answer that is not to go on regardless; a user may add to them.
        """
        stop = () if params.ignore_eos else self._family.template.stop
        return replace(params, stop=tuple(dict.fromkeys((*stop, *params.stop))))

    def _pong(self) -> Pong:
        device = self._family.device
        return Pong(
            resident_bytes=_resident_bytes(),
            device_bytes=torch.cuda.memory_reserved(device) if device.type == "cuda" else 0,
        )

    def _report(self, report: Report) -> None:
        with self._send_lock:
            self._connection.send(report)


def _resident_bytes() -> int:
    """Memory of this process; 0 where the system does not tell."""
    try:
        return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0


def _frames(clip: Encode) -> Frames | None:
    """A clip's pictures; None where there are not as many bytes as its shape takes."""
    try:
        return np.frombuffer(clip.frames, dtype=np.uint8).reshape(clip.shape)
    except ValueError:
        _log.exception("clip_refused", **clip.origin.ids)
        return None


def _ms(seconds: float) -> float:
    return round(seconds * 1000, 1)


def _delta(output: Output, spell: Callable[[int], bytes]) -> Delta:
    return Delta(
        job_id=output.request_id,
        text=output.text,
        token_ids=output.token_ids,
        finish_reason=output.finish_reason,
        num_prompt_tokens=output.num_prompt_tokens,
        num_cached_tokens=min(output.num_cached_tokens, output.num_prompt_tokens),
        num_output_tokens=output.num_output_tokens,
        running_seconds=output.running_seconds,
        logprobs=tuple(_spelled(logprobs, spell) for logprobs in output.logprobs),
    )


def _spelled(logprobs: Logprobs, spell: Callable[[int], bytes]) -> TokenLogprobs:
    return TokenLogprobs(
        LikelyToken(spell(logprobs.token_id), logprobs.logprob),
        tuple(LikelyToken(spell(token_id), logprob) for token_id, logprob in logprobs.top),
    )


def _describe(family: Family, config: WorkerConfig) -> ModelInfo:
    return ModelInfo(
        name=config.name,
        family=family.name,
        checkpoint_digest=family.checkpoint_digest,
        dtype=str(family.dtype),
        quantization=config.quantization,
        frame_spec=family.frame_spec,
        pixel_spec=family.pixel_spec,
        feature_shape=family.feature_shape,
        num_video_tokens=family.num_video_tokens,
        num_parameters=family.num_parameters,
        max_model_len=family.max_model_len,
        default_sampling=family.default_sampling,
    )


def main(connection: "Connection[Report, Command]") -> None:
    """Load the model that the pipe's first message names, then serve; until then the garbage collector rests."""
    config = connection.recv()
    assert isinstance(config, WorkerConfig)
    configure_logging(level=config.log_level, style=config.log_format, process=f"worker-{config.number}")
    tracing.configure_tracing()
    torch.set_num_threads(config.threads)
    try:
        worker = Worker(connection, config)
        worker.work_once()
    except ValueError as error:
        connection.send(NotLoaded(reason=str(error)))  # the operator can mend it, and needs no traceback
        sys.exit(1)
    except (MemoryError, torch.OutOfMemoryError):
        connection.send(NotLoaded(reason="There is not enough memory on the device for the model."))
        sys.exit(1)
    gc.freeze()
    gc.enable()
    worker.run()

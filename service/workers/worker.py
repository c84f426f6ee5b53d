"""The worker: one process on one device that encodes clips and answers questions. The service's one door to torch."""

import os
import queue
import signal
import sys
import threading
import time
import traceback
from collections.abc import Sequence
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import torch

from model.conversation import Clip, Conversation, Turn
from model.engine.config import EngineConfig, PromptTooLong, check_length
from model.engine.engine import Engine
from model.engine.sampling_params import SamplingParams
from model.engine.sequence import TextSegment, VideoSegment
from model.families import UnknownFamily, load_family
from model.family import EncodedClip, Family, build_prompt, count_prompt_tokens
from model.features import pack, unpack
from model.pixels import normalize
from model.tokenizer import TokenizerError
from model.weights import WeightsError
from service.workers.protocol import (
    Abort,
    CheckPrompt,
    Command,
    Delta,
    Encode,
    Encoded,
    Generate,
    ModelInfo,
    Ping,
    Pong,
    PromptChecked,
    Ready,
    Refused,
    Report,
    StepDone,
    Stop,
    WorkerConfig,
)

_MAX_ENCODE_FRAMES = 256  # frames of one encoder batch
_PREFILL_BESIDE_DECODE = {"cuda": 512, "cpu": 64}
"""Tokens of prompts in a step in which others get their next token, so that they get it soon."""


class Worker:
    """Takes commands from a pipe between two engine steps, and reports what each step gained."""

    def __init__(self, connection: "Connection[Report, Command]", config: WorkerConfig) -> None:
        self._connection = connection
        self._send_lock = threading.Lock()
        self._inbox: queue.SimpleQueue[Command] = queue.SimpleQueue()
        self._family = load_family(
            config.family,
            checkpoint=None if config.checkpoint is None else Path(config.checkpoint),
            device=_device(config.device),
            dtype=None if config.dtype == "auto" else getattr(torch, config.dtype),
            quantization=config.quantization,
        )
        self._engine_config = EngineConfig(
            max_num_seqs=config.max_num_seqs,
            max_model_len=self._family.max_model_len,
            max_num_batched_tokens=config.max_num_batched_tokens,
            max_prefill_beside_decode=_PREFILL_BESIDE_DECODE[self._family.language_model.device.type],
        )
        self._engine = Engine(self._family.language_model, self._family.tokenizer, self._engine_config)
        self._config = config

    def run(self) -> None:
        """Serve until the pipe ends or a `Stop` comes."""
        self._answer_once()
        threading.Thread(target=self._listen, name="commands", daemon=True).start()
        self._report(Ready(info=_describe(self._family, self._config)))
        while self._obey(self._take()):
            if self._engine.has_work:
                self._step()

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
                self._report(Pong())
            else:
                self._inbox.put(command)

    def _take(self) -> list[Command]:
        commands = [] if self._engine.has_work else [self._inbox.get()]
        while True:
            try:
                commands.append(self._inbox.get_nowait())
            except queue.Empty:
                return commands

    def _obey(self, commands: list[Command]) -> bool:
        clips: list[Encode] = []
        for command in commands:
            match command:
                case Stop():
                    return False
                case Abort():
                    self._engine.abort(command.job_id)
                case Generate():
                    self._add(command)
                case Encode():
                    clips.append(command)
        for batch in _batches(clips):
            self._encode(batch)
        return True

    def _check(self, command: CheckPrompt) -> Report:
        try:
            num_tokens = count_prompt_tokens(self._family, command.conversation)
            check_length(num_tokens, self._engine_config)
        except PromptTooLong as error:
            return Refused(job_id=command.job_id, code="context_length_exceeded", message=str(error))
        except Exception:  # noqa: BLE001  it would end the one thread that takes commands, and the worker would go deaf
            traceback.print_exc()
            return Refused(job_id=command.job_id, code="engine_error", message="The model cannot take this question.")
        return PromptChecked(job_id=command.job_id, num_prompt_tokens=num_tokens)

    def _add(self, command: Generate) -> None:
        try:
            clips = [
                EncodedClip(torch.from_numpy(unpack(blob, key=key, shape=self._family.feature_shape)), key)
                for blob, key in zip(command.features, command.feature_keys, strict=True)
            ]
            self._engine.add_request(
                command.job_id,
                self._prompt(command.conversation, clips),
                self._with_template_stops(command.params),
                output_token_ids=command.output_token_ids,
            )
        except PromptTooLong as error:
            self._report(Refused(job_id=command.job_id, code="context_length_exceeded", message=str(error)))
        except Exception:  # noqa: BLE001  one bad question must not end the worker
            traceback.print_exc()
            message = "The model cannot take this question."
            self._report(Refused(job_id=command.job_id, code="engine_error", message=message))

    # -- work

    def _encode(self, batch: list[Encode]) -> None:
        start = time.perf_counter()
        try:
            features = self._features(batch)
        except Exception:  # noqa: BLE001  one bad clip must not end the worker
            traceback.print_exc()
            features = None
        seconds = (time.perf_counter() - start) / len(batch)
        for i, clip in enumerate(batch):
            if features is None or not np.isfinite(features[i]).all():
                self._report(Refused(job_id=clip.job_id, code="encode_failed", message="The video cannot be encoded."))
                continue
            blob = pack(features[i], key=clip.key, frame_indices=clip.frame_indices, timestamps=clip.timestamps)
            self._report(Encoded(job_id=clip.job_id, blob=blob, seconds=seconds))

    def _features(self, batch: list[Encode]) -> np.ndarray:
        clips = [np.frombuffer(clip.frames, dtype=np.uint8).reshape(clip.shape) for clip in batch]
        pixel_values = torch.from_numpy(
            np.stack([normalize(clip, self._family.pixel_spec) for clip in clips])
        )  # [B, T, 3, H, W]
        with torch.inference_mode():
            return self._family.encode(pixel_values).to("cpu", torch.float16).numpy()

    def _step(self) -> None:
        deltas = tuple(
            Delta(
                job_id=output.request_id,
                text=output.text,
                token_ids=output.token_ids,
                finish_reason=output.finish_reason,
                num_prompt_tokens=output.num_prompt_tokens,
                num_output_tokens=output.num_output_tokens,
            )
            for output in self._engine.step()
        )
        self._report(
            StepDone(deltas=deltas, num_running=self._engine.num_running, num_waiting=self._engine.num_waiting)
        )

    def _answer_once(self) -> None:
        """Encode a black clip and answer a question about it: after this, real ones work, and caches are warm."""
        spec, pixels = self._family.frame_spec, self._family.pixel_spec
        clip = np.zeros((1, spec.count, 3, pixels.size, pixels.size), dtype=np.float32)
        with torch.inference_mode():
            features = self._family.encode(torch.from_numpy(clip)).to("cpu", torch.float16)
        question = Conversation(
            clips=(Clip(frame_indices=tuple(range(spec.count)), fps=1.0),),
            turns=(Turn(role="user", text="What is this?"),),
        )
        prompt = self._prompt(question, [EncodedClip(features[0], "warm-up")])
        self._engine.add_request("warm-up", prompt, SamplingParams(max_tokens=2))
        while self._engine.has_work:
            self._engine.step()

    def _prompt(self, conversation: Conversation, clips: Sequence[EncodedClip]) -> Sequence[TextSegment | VideoSegment]:
        with torch.inference_mode():
            return build_prompt(self._family, conversation, clips)

    def _with_template_stops(self, params: SamplingParams) -> SamplingParams:
        """The template's own strings end every answer that is not to go on regardless; a user may add to them."""
        if params.ignore_eos:
            return params
        return replace(params, stop=tuple(dict.fromkeys((*self._family.template.stop, *params.stop))))

    def _report(self, report: Report) -> None:
        with self._send_lock:
            self._connection.send(report)


def _batches(clips: list[Encode]) -> list[list[Encode]]:
    """Clips that may go through the encoder together: of one shape, within the frame budget."""
    batches: list[list[Encode]] = []
    for clip in sorted(clips, key=lambda clip: clip.shape):
        batch = batches[-1] if batches else []
        if batch and batch[0].shape == clip.shape and (len(batch) + 1) * clip.shape[0] <= _MAX_ENCODE_FRAMES:
            batch.append(clip)
        else:
            batches.append([clip])
    return batches


def _device(name: str) -> str:
    if name != "auto":
        return name
    return "cuda" if torch.cuda.is_available() else "cpu"


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


def main() -> None:
    """Run a worker on the pipe whose file descriptor is the first argument."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the API process decides when to stop
    connection: Connection[Report, Command] = Connection(int(sys.argv[1]))
    config = connection.recv()
    assert isinstance(config, WorkerConfig)
    torch.set_num_threads(config.threads)
    try:
        worker = Worker(connection, config)
    except (WeightsError, TokenizerError, UnknownFamily) as error:
        sys.exit(f"reeltalk: {error}")  # the operator can mend it, and needs no traceback
    worker.run()


if __name__ == "__main__":
    main()

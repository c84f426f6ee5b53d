"""The worker process: loads a model on one device, then runs the commands that come over a pipe. Imports torch.

Only `service.workers.__main__` imports this module.
"""

import gc
import os
import queue
import sys
import threading
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import torch

from model.engine.config import EngineConfig
from model.families import load_family
from model.family import Family
from model.features import Features
from model.memory import within_share
from service.observability import tracing
from service.observability.logging import configure_logging
from service.workers.encode_queue import EncodeQueue
from service.workers.protocol import (
    Abort,
    CheckPrompt,
    Command,
    Encode,
    Generate,
    LoadFailed,
    ModelInfo,
    Ping,
    Pong,
    Ready,
    Report,
    Stop,
    WorkerConfig,
)
from service.workers.specs import assign_devices, check_device, device_share
from service.workers.text_generator import TextGenerator

_PREFILL_BESIDE_DECODE = {"cuda": 512, "cpu": 24}
"""By device: prompt tokens in a step that also decodes, few enough that running answers get their next token soon."""


class Worker:
    """Runs encode batches and engine steps, and takes commands between them.

    Raises:
        ValueError: the model cannot be loaded, or does not fit into memory; the message is a sentence.
    """

    def __init__(self, connection: "Connection[Report, Command]", config: WorkerConfig) -> None:
        self._connection = connection
        self._send_lock = threading.Lock()
        self._commands: queue.SimpleQueue[Command] = queue.SimpleQueue()
        self._config = config
        num_gpus = torch.cuda.device_count()
        specs = assign_devices(config.workers, num_gpus=num_gpus)
        spec = specs[config.number]
        check_device(spec, num_gpus=num_gpus)
        self._placement = spec.device, num_gpus
        self._family = load_family(
            config.family,
            checkpoint=None if config.checkpoint is None else Path(config.checkpoint),
            device=spec.device,
            dtype=None if config.dtype == "auto" else getattr(torch, config.dtype),
            quantization=config.quantization,
            role=spec.role,
        )
        self._encode_queue = EncodeQueue(
            self._family, max_num_batched_frames=config.max_num_batched_frames, report=self._report
        )
        self._generator: TextGenerator | None = None
        if spec.generates:
            engine_config = EngineConfig(
                max_num_seqs=config.max_num_seqs,
                max_model_len=self._family.max_model_len,
                max_num_batched_tokens=config.max_num_batched_tokens,
                cuda_graphs=config.cuda_graphs,
                max_prefill_beside_decode=_PREFILL_BESIDE_DECODE[self._family.device.type],
                condition_shapes=self._family.condition_shapes,
            )
            share = device_share(specs, config.number)
            engine_config = within_share(engine_config, self._family.language_model, share=share)
            self._generator = TextGenerator(self._family, engine_config, report=self._report)

    def warm_up(self) -> None:
        """Run what the worker's role needs once: encode a black clip, answer a question about it, or about none.

        Raises:
            ValueError: the model cannot encode the clip.
        """
        features: Features = {part.name: np.zeros(part.shape, dtype=np.float16) for part in self._family.parts}
        if self._config.spec.encodes and self._family.inputs is not None:
            features = self._encode_queue.warm_up()
        if self._generator is not None:
            self._generator.warm_up(features)

    def run(self) -> None:
        """Report `Ready`, then run commands until `Stop`; if the pipe ends, the process exits."""
        threading.Thread(target=self._receive, name="commands", daemon=True).start()
        device, num_gpus = self._placement
        self._report(Ready(info=_model_info(self._family, self._config), device=device, num_gpus=num_gpus))
        while self._handle(self._take_commands()):
            is_generating = self._generator is not None and self._generator.has_work
            # running answers wait for the encoder, so it takes one clip at a time beside them
            self._encode_queue.encode_batch(max_clips=1 if is_generating else None)
            if self._generator is not None and self._generator.has_work:
                self._generator.step()

    def _receive(self) -> None:
        """Put commands into the queue; reply at once, during steps too, to those that need no step."""
        while True:
            try:
                command = self._connection.recv()
            except (EOFError, OSError):
                os._exit(0)  # the API process has ended
            if isinstance(command, CheckPrompt):
                self._report(self._generator_for(command).check(command))
            elif isinstance(command, Ping):
                self._report(self._pong())
            else:
                self._commands.put(command)

    def _take_commands(self) -> list[Command]:
        """All queued commands; waits for one if there is no work."""
        has_work = self._encode_queue or (self._generator is not None and self._generator.has_work)
        commands = [] if has_work else [self._commands.get()]
        while True:
            try:
                commands.append(self._commands.get_nowait())
            except queue.Empty:
                return commands

    def _handle(self, commands: list[Command]) -> bool:
        """Apply commands; False after `Stop`."""
        for command in commands:
            match command:
                case Stop():
                    return False
                case Encode():
                    self._encode_queue.add(command)
                case Generate():
                    self._generator_for(command).add(command)
                case Abort():
                    self._generator_for(command).abort(command.job_id)
        return True

    def _generator_for(self, command: CheckPrompt | Generate | Abort) -> TextGenerator:
        assert self._generator is not None, f"{type(command).__name__} sent to a worker without an engine"
        return self._generator

    def _pong(self) -> Pong:
        device = self._family.device
        is_gpu = device.type == "cuda"
        return Pong(
            resident_bytes=_resident_bytes(),
            device_bytes=torch.cuda.memory_reserved(device) if is_gpu else 0,
            free_device_bytes=torch.cuda.mem_get_info(device)[0] if is_gpu else 0,
        )

    def _report(self, report: Report) -> None:
        with self._send_lock:
            self._connection.send(report)


def _resident_bytes() -> int:
    """Resident memory of this process; 0 on a system without /proc."""
    try:
        return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0


def _model_info(family: Family, config: WorkerConfig) -> ModelInfo:
    return ModelInfo(
        name=config.name,
        family=family.name,
        checkpoint_digest=family.checkpoint_digest,
        encoder_digest=family.encoder_digest,
        dtype=str(family.dtype),
        quantization=config.quantization,
        inputs=family.inputs,
        parts=family.parts,
        num_video_tokens=family.num_video_tokens,
        time_axis=family.time_axis,
        num_parameters=family.num_parameters,
        max_model_len=family.max_model_len,
        default_sampling=family.default_sampling,
    )


def main(connection: "Connection[Report, Command]") -> None:
    """Load the model that the first message on the pipe describes, then run commands.

    The caller has turned the garbage collector off; it is turned on once the model is loaded.
    """
    config = connection.recv()
    assert isinstance(config, WorkerConfig)
    configure_logging(level=config.log_level, style=config.log_format, process=f"worker-{config.number}")
    tracing.configure_tracing()
    torch.set_num_threads(config.threads)
    try:
        worker = Worker(connection, config)
        worker.warm_up()
    except ValueError as error:
        connection.send(LoadFailed(reason=str(error)))  # an operator's mistake: no traceback
        sys.exit(1)
    except (MemoryError, torch.OutOfMemoryError):
        connection.send(LoadFailed(reason="There is not enough memory on the device for the model."))
        sys.exit(1)
    gc.freeze()
    gc.enable()
    worker.run()

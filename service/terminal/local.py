"""A conversation without a service: runs the model in this process. Imports torch."""

import contextlib
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from types import FrameType
from typing import Any

import torch

from model.engine.config import PromptTooLong
from model.engine.output import Output
from model.engine.sampling_params import InvalidSampling
from model.families import UnknownFamily, load_family
from model.family import EncodedClip, Family
from model.moments import TimeAxis, find_moments
from model.offline import Offline, watch
from model.text.conversation import Clip, Conversation, Turn
from model.text.tokenizer import TokenizerError
from model.video.reader import open_video
from model.video.spec import InvalidFrameSpec, VideoError, VideoLimits
from model.weights import WeightsError
from service.terminal.events import Event
from service.terminal.failures import Exit, Failure, usage_error
from service.terminal.printing import ShowProgress


class LocalChat:
    """A conversation about one video, or with a text model about none, with an engine in this process."""

    resume_options = ""

    def __init__(
        self,
        video: Path | None,
        *,
        family: str,
        checkpoint: Path | None,
        device: str,
        frames: dict[str, Any],
        fields: dict[str, Any],
        show: ShowProgress,
    ) -> None:
        """Load the model and encode the video, which takes seconds.

        Raises:
            Failure: the model cannot be loaded, the file is not a video, a field is invalid, or the model sees videos
                and there is none, or the other way round.
        """
        self._family = family
        self._system = str(fields.get("system", ""))
        sampling = {name: value for name, value in fields.items() if name != "system"}
        try:
            show("load")
            loaded = load_family(family, checkpoint=checkpoint, device=_existing(device))
            self._params = replace(loaded.default_sampling, **sampling)
            show("load", 1, 1)
            self._videos: list[tuple[Clip, EncodedClip]] = []
            self._time_axis: TimeAxis | None = None
            if (loaded.inputs is None) != (video is None):
                raise usage_error(_misfit(loaded))
            if video is not None:
                show("watch")
                self._watch(loaded, video, frames)
        except (UnknownFamily, WeightsError, TokenizerError, InvalidSampling, InvalidFrameSpec, OSError) as error:
            raise usage_error(str(error)) from error
        except VideoError as error:
            raise Failure(Exit.REFUSED, str(error), code=error.code) from error
        self._offline = Offline(loaded, max_num_seqs=1)
        self._turns: list[Turn] = []
        self._last: dict[str, Any] = {}

    def ask(self, question: str) -> Iterator[Event]:
        """Ask a question; yields `delta` events and `done` last."""
        asked = Turn(role="user", text=question)
        clips = tuple(clip for clip, _ in self._videos)
        conversation = Conversation(clips=clips, turns=(*self._turns, asked), system=self._system)
        begin = time.perf_counter()
        try:
            self._offline.add("answer", conversation, [encoded for _, encoded in self._videos], self._params)
        except PromptTooLong as error:
            raise Failure(Exit.REFUSED, str(error), code="context_length_exceeded") from error
        said = ""
        first: float | None = None
        self._last = {}
        try:
            for output in self._outputs():
                first = first or (time.perf_counter() - begin) * 1000
                if output.text:
                    said += output.text
                    yield Event(number=None, name="delta", data={"text": output.text})
                if output.finish_reason is not None:
                    self._last = self._done(output, said, first_ms=first)
        finally:
            self._end_answer()
            self._turns += [asked, Turn(role="assistant", text=said)]
            self._last = {"role": "assistant", "content": said} | self._last
        yield Event(number=None, name="done", data=self._last)

    def running(self) -> None:
        """Always None: an answer is generated only while its events are read."""

    def stop(self) -> None:
        """Do nothing: an answer ends as soon as its events are not read any more."""

    def answer(self) -> dict[str, Any]:
        """The document of the last answer in the format of a service, without ids."""
        return {"object": "answer", "status": "completed", "message": self._last}

    def model(self) -> str:
        """The family of the model."""
        return self._family

    def change_model(self, name: str) -> None:
        """Refuse: this process has one model."""
        raise usage_error(f"With --local the model cannot be changed to {name}; start another chat.")

    def _watch(self, loaded: Family, video: Path, frames: dict[str, Any]) -> None:
        """Encode the video, and find the seconds that positions of the model's time axis stand for."""
        assert loaded.inputs is not None, "the model sees videos"
        spec = replace(loaded.inputs.frames, **frames)
        self._videos = [watch(loaded, video, frames=spec)]
        if loaded.time_axis is not None:
            with open_video(video, VideoLimits()) as opened:
                duration = opened.facts.duration
            self._time_axis = TimeAxis.over(loaded.time_axis, duration=duration, start=spec.start, end=spec.end)

    def _outputs(self) -> Iterator[Output]:
        """Yield the outputs of the engine's steps; Ctrl-C takes effect between two steps, never within one."""
        with _deferred_interrupts() as raise_if_interrupted:
            while self._offline.engine.has_work:
                yield from self._offline.engine.step()
                raise_if_interrupted()

    def _end_answer(self) -> None:
        self._offline.engine.abort("answer")
        for _ in self._offline.outputs():
            pass  # runs the step that frees the answer's blocks

    def _done(self, output: Output, text: str, *, first_ms: float) -> dict[str, Any]:
        usage = {
            "prompt_tokens": output.num_prompt_tokens,
            "completion_tokens": output.num_output_tokens,
            "total_tokens": output.num_prompt_tokens + output.num_output_tokens,
        }
        frames = [
            {"frames": [{"index": index, "timestamp": index / clip.fps} for index in clip.frame_indices]}
            for clip, _ in self._videos
        ]
        moments = None if self._time_axis is None else [*map(asdict, find_moments(text, self._time_axis))]
        return {
            "finish_reason": output.finish_reason,
            "usage": usage,
            "timings": {"time_to_first_token_ms": round(first_ms, 3)},
            "frames": frames,
            "moments": moments,
        }


def _misfit(loaded: Family) -> str:
    """Why a model does not fit a conversation with or without a video."""
    if loaded.inputs is None:
        return f"The family {loaded.name} cannot see videos; omit the VIDEO."
    return f"The family {loaded.name} answers questions about a video; name a VIDEO."


def _existing(device: str) -> str:
    """Check that a device exists; `auto` becomes `cuda` if there is a GPU, else `cpu`."""
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    kind, _, number = device.partition(":")
    if kind == "cuda" and int(number or 0) >= torch.cuda.device_count():
        raise usage_error(f"There is no device {device}; use --device cpu.")
    return device


@contextlib.contextmanager
def _deferred_interrupts() -> Iterator[Callable[[], None]]:
    """Defer Ctrl-C in the block; yields a function that raises `KeyboardInterrupt` if it was pressed."""
    is_pressed = False

    def remember(_number: int, _frame: FrameType | None) -> None:
        nonlocal is_pressed
        is_pressed = True

    def raise_if_interrupted() -> None:
        if is_pressed:
            raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, remember)
    try:
        yield raise_if_interrupted
    finally:
        signal.signal(signal.SIGINT, before)

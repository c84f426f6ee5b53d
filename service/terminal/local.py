"""A conversation without a service: the model in this process. Imports torch, so it is imported when it is used."""

import contextlib
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any

import torch

from model.engine.config import PromptTooLong
from model.engine.output import Output
from model.engine.sampling_params import InvalidSampling
from model.families import UnknownFamily, load_family
from model.offline import Offline, watch
from model.text.conversation import Conversation, Turn
from model.text.tokenizer import TokenizerError
from model.video.spec import InvalidFrameSpec, VideoError
from model.weights import WeightsError
from service.terminal.events import Event
from service.terminal.failures import Exit, Failure, misused
from service.terminal.printing import ShowProgress


class LocalTalk:
    """A family, an engine, a video, and what was said about it."""

    way_back = ""

    def __init__(
        self,
        video: Path,
        *,
        family: str,
        checkpoint: Path | None,
        device: str,
        frames: dict[str, Any],
        fields: dict[str, Any],
        show: ShowProgress,
    ) -> None:
        """Load the model and watch the video, which takes a while.

        Raises:
            Failure: the model cannot be loaded, the file is no video, or a field is out of its bounds.
        """
        self._system = str(fields.get("system", ""))
        sampling = {name: value for name, value in fields.items() if name != "system"}
        try:
            show("load")
            loaded = load_family(family, checkpoint=checkpoint, device=_existing(device))
            self._params = replace(loaded.default_sampling, **sampling)
            show("load", 1, 1)
            show("watch")
            self._clip, self._features = watch(loaded, video, frames=replace(loaded.frame_spec, **frames))
        except (UnknownFamily, WeightsError, TokenizerError, InvalidSampling, InvalidFrameSpec, OSError) as error:
            raise misused(str(error)) from error
        except VideoError as error:
            raise Failure(Exit.REFUSED, str(error), code=error.code) from error
        self._offline = Offline(loaded, max_num_seqs=1)
        self._turns: list[Turn] = []
        self._last: dict[str, Any] = {}

    def ask(self, question: str) -> Iterator[Event]:
        """The answer's events, without progress: the video was watched before."""
        asked = Turn(role="user", text=question)
        conversation = Conversation(clips=(self._clip,), turns=(*self._turns, asked), system=self._system)
        begin = time.perf_counter()
        try:
            self._offline.add("answer", conversation, [self._features], self._params)
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
                    self._last = self._done(output, first_ms=first)
        finally:
            self._end_answer()
            self._turns += [asked, Turn(role="assistant", text=said)]
            self._last = {"role": "assistant", "content": said} | self._last
        yield Event(number=None, name="done", data=self._last)

    def running(self) -> None:
        """Nothing: an answer is given while it is read, and not else."""

    def stop(self) -> None:
        """Nothing is left to do: an answer that is not read to its end has ended."""

    def answer(self) -> dict[str, Any]:
        """As a service would tell it, without the ids that only a service gives."""
        return {"object": "answer", "status": "completed", "message": self._last}

    def _outputs(self) -> Iterator[Output]:
        """What the steps tell; Ctrl-C is heeded between two of them, for the engine does not bear it in one."""
        with _interrupts_kept() as heed:
            while self._offline.engine.has_work:
                yield from self._offline.engine.step()
                heed()

    def _end_answer(self) -> None:
        self._offline.engine.abort("answer")
        for _ in self._offline.outputs():
            pass  # the abort itself

    def _done(self, output: Output, *, first_ms: float) -> dict[str, Any]:
        usage = {
            "prompt_tokens": output.num_prompt_tokens,
            "completion_tokens": output.num_output_tokens,
            "total_tokens": output.num_prompt_tokens + output.num_output_tokens,
        }
        frames = [{"index": index, "timestamp": index / self._clip.fps} for index in self._clip.frame_indices]
        return {
            "finish_reason": output.finish_reason,
            "usage": usage,
            "timings": {"time_to_first_token_ms": round(first_ms, 3)},
            "frames": [{"frames": frames}],
        }


def _existing(device: str) -> str:
    """A device that is here; `auto` is a GPU where there is one."""
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    kind, _, number = device.partition(":")
    if kind == "cuda" and int(number or 0) >= torch.cuda.device_count():
        raise misused(f"There is no device {device} here; --device cpu needs none.")
    return device


@contextlib.contextmanager
def _interrupts_kept() -> Iterator[Callable[[], None]]:
    """Keep Ctrl-C for later in the block; what is yielded raises it."""
    pressed = False

    def keep(_number: int, _frame: FrameType | None) -> None:
        nonlocal pressed
        pressed = True

    def heed() -> None:
        if pressed:
            raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, keep)
    try:
        yield heed
    finally:
        signal.signal(signal.SIGINT, before)

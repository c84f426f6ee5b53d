"""A conversation without a service: the model in this process. Imports torch, so nothing imports it until it is used."""

import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from model.conversation import Conversation, Turn
from model.engine.config import PromptTooLong
from model.engine.output import Output
from model.engine.sampling_params import InvalidSampling
from model.families import UnknownFamily, load_family
from model.offline import Offline, watch
from model.tokenizer import TokenizerError
from model.video import VideoError
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
        fields: dict[str, Any],
        show: ShowProgress,
    ) -> None:
        """Load the model and watch the video, which takes a while.

        Raises:
            Failure: the model cannot be loaded, the file is no video, or a field is out of its bounds.
        """
        self._system = str(fields.pop("system", ""))
        try:
            show("load", 0)
            self._family = load_family(family, checkpoint=checkpoint, device=device)
            self._params = replace(self._family.default_sampling, **fields)
            show("load", 1)
            show("watch", 0)
            self._clip, self._features = watch(self._family, video)
        except (UnknownFamily, WeightsError, TokenizerError, InvalidSampling, OSError) as error:
            raise misused(str(error)) from error
        except VideoError as error:
            raise Failure(Exit.REFUSED, str(error), code=error.code) from error
        self._offline = Offline(self._family)
        self._turns: list[Turn] = []
        self._said = ""
        self._last: Event | None = None

    def ask(self, question: str) -> Iterator[Event]:
        """The answer's events, without progress: the video was watched before."""
        self._turns.append(Turn(role="user", text=question))
        self._said, self._last = "", None
        begin = time.perf_counter()
        first: float | None = None
        try:
            self._offline.add("answer", self._conversation(), [self._features], self._params)
        except PromptTooLong as error:
            self._turns.pop()
            raise Failure(Exit.REFUSED, str(error), code="context_length_exceeded") from error
        for output in self._offline.outputs():
            first = first or (time.perf_counter() - begin) * 1000
            if output.text:
                self._said += output.text
                yield Event(number=None, name="delta", data={"text": output.text})
            if output.finish_reason is not None:
                self._last = Event(number=None, name="done", data=_done(output, first_ms=first))
        self._keep()
        if self._last is not None:
            yield self._last

    def stop(self) -> None:
        """Begin with a fresh engine: the old one may have been interrupted in the middle of a step."""
        self._offline = Offline(self._family)
        self._keep()

    def answer(self) -> dict[str, Any]:
        """As a service would tell it, without the ids that only a service gives."""
        message = {"role": "assistant", "content": self._said}
        status = {} if self._last is None else self._last.data
        return {"object": "answer", "status": "completed", "message": message | status}

    def renew(self) -> None:
        """Forget what was said."""
        self._turns.clear()

    def _conversation(self) -> Conversation:
        return Conversation(clips=(self._clip,), turns=tuple(self._turns), system=self._system)

    def _keep(self) -> None:
        self._turns.append(Turn(role="assistant", text=self._said))


def _done(output: Output, *, first_ms: float) -> dict[str, Any]:
    usage = {
        "prompt_tokens": output.num_prompt_tokens,
        "completion_tokens": output.num_output_tokens,
        "total_tokens": output.num_prompt_tokens + output.num_output_tokens,
    }
    timings = {"time_to_first_token_ms": round(first_ms, 3)}
    return {"finish_reason": output.finish_reason, "usage": usage, "timings": timings}

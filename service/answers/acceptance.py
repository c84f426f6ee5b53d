"""The checks before a generation is accepted, the same for questions in sessions and for chat completions."""

import asyncio
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

from model.engine.sampling_params import SamplingParams
from model.text.conversation import Clip, Conversation, Turn
from service.answers.admission import Admission, Place
from service.answers.generation import deadline_exceeded
from service.answers.question import Question
from service.answers.sampling import sampling_params
from service.errors import InvalidRequest, Unavailable
from service.store.records import FrameRequest, VideoRecord
from service.videos.feature_keys import requested_inputs
from service.videos.preparation import Preparation, check_usable
from service.workers.pools import Pools
from service.workers.protocol import ModelInfo

_CHECK_TIMEOUT = 15.0  # seconds that a question waits for a worker to count its tokens


@dataclass(frozen=True, kw_only=True, slots=True)
class Accepted:
    """A question that passed all checks."""

    model: ModelInfo
    params: SamplingParams


class Acceptance:
    """Checks a question about videos against the model, the videos and the queue."""

    def __init__(self, *, pools: Pools, preparation: Preparation, admission: Admission) -> None:
        self._pools = pools
        self._preparation = preparation
        self._admission = admission

    async def model(self, name: str | None) -> ModelInfo:
        """Return a model that is loaded, by name; None stands for the default one.

        Raises:
            NotFound: no model has this name.
            Unavailable: the model is not loaded yet, cannot be loaded, or is being unloaded.
        """
        served = self._pools.get(name)
        served.check_open()
        return await served.loaded()

    async def check_fields(self, question: Question, *, model: str | None) -> Accepted:
        """Check the model's name and the sampling fields, before any work on videos.

        Raises:
            ServiceError: an unknown model, one that cannot be used now, or sampling fields that are out of bounds or
                exclude each other.
        """
        info = await self.model(model)
        return Accepted(model=info, params=sampling_params(question.sampling, default=info.default_sampling))

    async def check_videos(
        self, tenant: str, videos: Sequence[VideoRecord], frames: FrameRequest, *, model: ModelInfo
    ) -> None:
        """Refuse videos that cannot be used or must be uploaded again, and frames that the model does not take.

        Raises:
            ServiceError: the refusal.
        """
        if videos:
            requested_inputs(model, frames)
        for video in videos:
            check_usable(video)
        await self._preparation.check_available(tenant, videos, frames, model=model.name)

    async def check_prompt(
        self,
        conversation: Conversation,
        *,
        model: str,
        place: Place,
        deadline: float | None,
    ) -> None:
        """Count the tokens of a prompt on a worker of the model, and reserve space for them in the queue.

        Raises:
            ServiceError: the prompt is too long for the model or for the queue, or no worker counts it in time.
        """
        num_tokens = await self._count_tokens(conversation, model=model, deadline=deadline)
        self._admission.reserve_tokens(place, num_tokens=num_tokens)

    async def _count_tokens(self, conversation: Conversation, *, model: str, deadline: float | None) -> int:
        """Count the prompt's tokens on a worker, which refuses a prompt that is too long for the model."""
        seconds_left = math.inf if deadline is None else deadline - time.time()
        try:
            return await asyncio.wait_for(
                self._pools.check(conversation, model=model), min(_CHECK_TIMEOUT, seconds_left)
            )
        except TimeoutError:
            if deadline is not None and time.time() >= deadline:
                raise deadline_exceeded() from None
            raise Unavailable("model_unavailable", "No worker is ready; try again in a moment.") from None


def check_modality(info: ModelInfo, *, has_videos: bool, param: str) -> None:
    """Refuse a conversation without videos for a model that needs them, and one with videos for a model that sees none.

    Raises:
        InvalidRequest: the refusal; `param` is the field that names the videos.
    """
    if has_videos and info.inputs is None:
        raise InvalidRequest(
            "unsupported_value", f"The model {info.name!r} sees no videos; ask it without one.", param=param
        )
    if not has_videos and info.inputs is not None:
        raise InvalidRequest(
            "missing_field", f"The model {info.name!r} answers questions about videos; name at least one.", param=param
        )


def longest_prompt(
    videos: Sequence[VideoRecord], turns: tuple[Turn, ...], *, system: str, frames: FrameRequest, info: ModelInfo
) -> Conversation:
    """A conversation whose prompt is as long as one about these videos can be, whichever frames are sampled.

    A video whose sound is not known to be unusable is taken to have all parts.
    """
    count = frames.count or (info.inputs.frames.count if info.inputs else 0)
    clips = tuple(
        Clip(
            frame_indices=((video.num_frames or 1) - 1,) * count,
            fps=video.fps or 1.0,
            parts=frozenset(part.name for part in info.parts if not part.optional or _may_hear(video, frames)),
        )
        for video in videos
    )
    return Conversation(clips=clips, turns=turns, system=system)


def _may_hear(video: VideoRecord, frames: FrameRequest) -> bool:
    return frames.audio and video.audio_error is None

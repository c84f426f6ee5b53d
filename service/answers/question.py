"""A question and its sampling fields, as clients send them."""

import secrets
from dataclasses import dataclass
from typing import TypeVar

from model.engine.sampling_params import MAX_SEED, InvalidSampling, SamplingParams
from service.errors import InvalidRequest

_T = TypeVar("_T")


@dataclass(frozen=True, kw_only=True, slots=True)
class Question:
    """What a user asks, and the sampling fields they set; None takes the model's default."""

    content: str
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    num_beams: int | None = None
    length_penalty: float | None = None
    max_tokens: int | None = None
    seed: int | None = None
    stop: tuple[str, ...] | None = None
    logprobs: int | None = None
    ignore_eos: bool = False
    priority: int = 0
    timeout: float | None = None
    """Seconds from now after which the answer is of no use any more."""


def sampling_params(question: Question, *, default: SamplingParams) -> SamplingParams:
    """How the answer's tokens are chosen: as the user says, else as the model does by default.

    Raises:
        InvalidRequest: fields that do not go together.
    """
    num_beams = _chosen(question.num_beams, default.num_beams)
    # Who asks for beams and says nothing of a temperature does not mean the model's own.
    temperature = 0.0 if num_beams > 1 else default.temperature
    try:
        return SamplingParams(
            temperature=_chosen(question.temperature, temperature),
            top_k=_chosen(question.top_k, default.top_k),
            top_p=_chosen(question.top_p, default.top_p),
            min_p=_chosen(question.min_p, default.min_p),
            repetition_penalty=_chosen(question.repetition_penalty, default.repetition_penalty),
            presence_penalty=_chosen(question.presence_penalty, default.presence_penalty),
            frequency_penalty=_chosen(question.frequency_penalty, default.frequency_penalty),
            num_beams=num_beams,
            length_penalty=_chosen(question.length_penalty, default.length_penalty),
            max_tokens=_chosen(question.max_tokens, default.max_tokens),
            seed=_chosen(question.seed, secrets.randbelow(MAX_SEED)),
            stop=_chosen(question.stop, default.stop),
            logprobs=question.logprobs,
            ignore_eos=question.ignore_eos,
        )
    except InvalidSampling as error:
        raise InvalidRequest("invalid_value", str(error), param=error.param) from None


def _chosen(value: _T | None, otherwise: _T) -> _T:
    return otherwise if value is None else value

"""The sampling fields of a request: their names, types and bounds, and the parameters they amount to."""

import dataclasses
import secrets
from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints

from model.engine.sampling_params import (
    BOUNDS,
    MAX_LOGPROBS,
    MAX_SEED,
    MAX_STOP_LENGTH,
    InvalidSampling,
    SamplingParams,
)
from service.errors import InvalidRequest

_MAX_STOP_STRINGS = 8


def _whole_number(value: object) -> object:
    return int(value) if isinstance(value, float) and value.is_integer() else value


WHOLE = BeforeValidator(_whole_number)
"""Lets an integer field accept 8.0: JSON has one kind of number."""


def _number(name: str) -> object:
    low, high = BOUNDS[name]
    return Field(ge=low, le=high, allow_inf_nan=False)


def _integer(name: str) -> object:
    low, high = BOUNDS[name]
    return Field(ge=int(low), le=int(high))


_StopString = Annotated[str, StringConstraints(min_length=1, max_length=MAX_STOP_LENGTH)]
StopStrings = _StopString | Annotated[list[_StopString], Field(max_length=_MAX_STOP_STRINGS)]
MaxTokens = Annotated[int, _integer("max_tokens"), WHOLE]


class SamplingFields(BaseModel):
    """The sampling fields that every API has under these names; None takes the model's default."""

    model_config = ConfigDict(extra="forbid", strict=True)

    temperature: Annotated[float, _number("temperature")] | None = None
    top_p: Annotated[float, _number("top_p")] | None = None
    top_k: Annotated[int, _integer("top_k"), WHOLE] | None = Field(default=None, description="0 is off.")
    min_p: Annotated[float, _number("min_p")] | None = Field(default=None, description="0 is off.")
    repetition_penalty: Annotated[float, _number("repetition_penalty")] | None = Field(
        default=None, description="1 is off."
    )
    presence_penalty: Annotated[float, _number("presence_penalty")] | None = Field(
        default=None, description="0 is off."
    )
    frequency_penalty: Annotated[float, _number("frequency_penalty")] | None = Field(
        default=None, description="0 is off."
    )
    max_tokens: MaxTokens | None = None
    seed: Annotated[int, Field(ge=0, le=MAX_SEED), WHOLE] | None = None
    stop: StopStrings | None = None
    ignore_eos: bool | None = Field(
        default=None, description="Continue to `max_tokens` after an end-of-sequence token, for benchmarks."
    )


class BeamSearchFields(SamplingFields):
    """The sampling fields of an API that has beam search too."""

    num_beams: Annotated[int, _integer("num_beams"), WHOLE] | None = Field(
        default=None, description="More than one selects beam search: the answer comes as a whole."
    )
    length_penalty: Annotated[float, _number("length_penalty")] | None = None


class SamplingRequest(BeamSearchFields):
    """Everything that a request can say about how an answer's tokens are chosen."""

    logprobs: Annotated[int, Field(ge=0, le=MAX_LOGPROBS)] | None = None
    """How many of the likeliest tokens to report with each token; None reports no log-probabilities."""


def sampling_params(request: SamplingRequest, *, default: SamplingParams) -> SamplingParams:
    """Complete a request with the model's defaults, and with a random seed if it has none.

    Raises:
        InvalidRequest: fields that exclude each other, or a value out of bounds.
    """
    chosen = request.model_dump(exclude_none=True)
    if isinstance(request.stop, str):
        chosen["stop"] = (request.stop,)
    elif request.stop is not None:
        chosen["stop"] = tuple(request.stop)
    if chosen.get("num_beams", default.num_beams) > 1:
        # The model's default temperature is for sampling; beam search without one must not fail because of it.
        chosen.setdefault("temperature", 0.0)
    chosen.setdefault("seed", secrets.randbelow(MAX_SEED))
    try:
        return dataclasses.replace(default, **chosen)
    except InvalidSampling as error:
        raise InvalidRequest("invalid_value", str(error), param=error.param) from None

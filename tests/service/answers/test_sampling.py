"""A request's sampling fields become complete parameters: checked, and with the model's defaults."""

import dataclasses
import json

import pytest
from pydantic import ValidationError

from model.engine.sampling_params import BOUNDS, SamplingParams
from service.answers.sampling import SamplingRequest, sampling_params
from service.errors import InvalidRequest
from service.store.records import AnswerRecord
from tests.service.answers.conversations import answer_record

DEFAULT = SamplingParams(temperature=0.7, top_p=0.9, max_tokens=64, stop=("###",))


def test_the_fields_of_a_request_are_the_fields_of_the_parameters() -> None:
    assert set(SamplingRequest.model_fields) == {field.name for field in dataclasses.fields(SamplingParams)}


@pytest.mark.parametrize("field", BOUNDS)
def test_a_request_has_the_bounds_of_the_parameters(field: str) -> None:
    low, high = BOUNDS[field]
    assert getattr(SamplingRequest.model_validate({field: high}), field) == high
    for value in (low - 1, high * 2, float("nan"), float("inf")):
        with pytest.raises(ValidationError):
            SamplingRequest.model_validate({field: value})


def test_a_whole_float_is_an_integer_and_a_string_is_none() -> None:
    assert SamplingRequest.model_validate({"max_tokens": 8.0}).max_tokens == 8
    for value in (8.5, "8"):
        with pytest.raises(ValidationError):
            SamplingRequest.model_validate({"max_tokens": value})


def test_fields_that_are_not_given_take_the_model_s_defaults() -> None:
    params = sampling_params(SamplingRequest(top_k=5), default=DEFAULT)
    assert dataclasses.replace(params, seed=0) == dataclasses.replace(DEFAULT, top_k=5)


def test_a_request_without_a_seed_gets_a_random_one() -> None:
    seeds = {sampling_params(SamplingRequest(), default=DEFAULT).seed for _ in range(3)}
    assert len(seeds) == 3
    assert sampling_params(SamplingRequest(seed=7), default=DEFAULT).seed == 7


def test_one_stop_string_is_a_list_of_one() -> None:
    assert sampling_params(SamplingRequest(stop="."), default=DEFAULT).stop == (".",)
    assert sampling_params(SamplingRequest(stop=["a", "b"]), default=DEFAULT).stop == ("a", "b")
    assert sampling_params(SamplingRequest(stop=[]), default=DEFAULT).stop == ()


def test_beam_search_ignores_the_model_s_temperature_and_refuses_one_that_is_given() -> None:
    assert sampling_params(SamplingRequest(num_beams=2), default=DEFAULT).temperature == 0
    with pytest.raises(InvalidRequest) as refusal:
        sampling_params(SamplingRequest(num_beams=2, temperature=0.5), default=DEFAULT)
    assert (refusal.value.code, refusal.value.param) == ("invalid_value", "num_beams")


def test_a_stored_answer_keeps_its_sampling_in_the_form_of_earlier_releases() -> None:
    record = answer_record().model_copy(update={"sampling": DEFAULT})
    document = record.model_dump_json()
    assert AnswerRecord.model_validate_json(document) == record
    assert "logprobs" not in json.loads(document)["sampling"]

"""A service with a quantised language model reports it, and uses features that were cached without it."""

from pathlib import Path

import pytest

from model.quantization import Quantization
from tests.model.test_quantization import LIBRARIES
from tests.running import RunningService, running
from tests.talkative import talkative_checkpoint


@pytest.mark.parametrize("kind", ["int8", "int4"])
def test_a_quantised_model_shares_features_and_answers_otherwise(
    tmp_path: Path, drawn: Path, kind: Quantization
) -> None:
    pytest.importorskip(LIBRARIES[kind])
    checkpoint = ("--checkpoint", str(talkative_checkpoint(tmp_path / "checkpoint")))
    with running(tmp_path / "data", *checkpoint) as service:
        video = service.upload(drawn)
        exact = long_answer(service, video["id"])
        assert quantization(service) is None
    with running(tmp_path / "data", *checkpoint, "--quantize", kind) as service:
        assert quantization(service) == kind
        assert long_answer(service, video["id"]) != exact
        assert service.metric("reeltalk_feature_cache_hits_total") == 1
        assert service.metric("reeltalk_video_encode_seconds_count") == 0


def quantization(service: RunningService) -> object:
    """The model in `/v1/models`."""
    (model,) = service.client.get("/v1/models").json()["data"]
    return model["quantization"]


def long_answer(service: RunningService, video_id: str) -> str:
    """A long sampled answer, in which small differences of the logits show."""
    message = service.ask(service.open_session(video_id), "What happens?", temperature=2, seed=1, max_tokens=100)
    content: str = message["content"]
    return content

"""The longest prompt that a conversation can have counts the sound of a video unless it is known not to be heard."""

import pytest

from model.families import load_family
from model.text.conversation import Turn
from service.answers.acceptance import longest_prompt
from service.store.records import FrameRequest, Problem, VideoRecord
from service.workers.protocol import ModelInfo

SILENT = Problem(code="no_audio_stream", message="The file has no sound track.")


@pytest.fixture(scope="module")
def info() -> ModelInfo:
    family = load_family("video-llama")
    return ModelInfo(
        name="tiny",
        family=family.name,
        checkpoint_digest=family.checkpoint_digest,
        encoder_digest=family.encoder_digest,
        dtype="float32",
        quantization=None,
        inputs=family.inputs,
        parts=family.parts,
        num_video_tokens=family.num_video_tokens,
        time_axis=None,
        num_parameters=family.num_parameters,
        max_model_len=family.max_model_len,
        default_sampling=family.default_sampling,
    )


@pytest.mark.parametrize(
    ("error", "audio", "parts"),
    [
        (None, True, {"video", "audio"}),
        (None, False, {"video"}),
        (SILENT, True, {"video"}),
    ],
)
def test_a_prompt_has_the_parts_that_the_video_may_have(
    info: ModelInfo, error: Problem | None, audio: bool, parts: set[str]
) -> None:
    video = VideoRecord(
        id="vid_1", sha256="00", bytes=1, filename="a.mp4", content_type="video/mp4", created_at=0.0, audio_error=error
    )
    turns = (Turn(role="user", text="What is it?"),)
    prompt = longest_prompt([video], turns, system="", frames=FrameRequest(audio=audio), info=info)
    assert [clip.parts for clip in prompt.clips] == [parts]


def test_a_model_that_hears_says_so(info: ModelInfo) -> None:
    assert info.modalities == ("video", "audio")

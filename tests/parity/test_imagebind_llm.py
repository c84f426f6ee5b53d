"""ImageBind-LLM against tensors, prompts, frames, ids and texts that the original program made."""

import json
from fractions import Fraction

import numpy as np
import pytest
import torch

from model.engine.sampling_params import SamplingParams
from model.families import family_module, load_family
from model.family import EncodedClip
from model.offline import Offline, watch
from model.text.conversation import Conversation, Turn
from model.verification.comparison import Comparison
from model.verification.stage import Claim, Stage
from model.video.spec import window_indices
from model.video.timeline import from_rate
from tests.parity.goldens import read_json, tensors
from tests.published import golden

NAME = "imagebind-llm"


@pytest.mark.parametrize("name", ["imagebind-llm-open", "imagebind-llm-e2e"])
def test_every_stage_gives_the_tensors_prompts_and_texts_of_the_original(name: str) -> None:
    folder = golden(name)
    expected = tensors(folder / "expected.safetensors")
    findings = list(family_module(NAME).verify_stages(load_family(NAME, checkpoint=folder), folder))
    rows = list(Comparison(expected, torch.float32).rows(findings))
    without_knn = [row.name for row in rows if row.verdict == "omitted"]
    assert [row for row in rows if row.verdict != "pass" and row.name not in without_knn] == []
    assert without_knn == (["visual_query_video_knn"] if name.endswith("open") else [])
    assert expected.keys() <= {row.name for row in rows}
    for finding in findings:
        if isinstance(finding, Stage):
            assert finding.tensor.shape == expected[finding.name].shape
        if isinstance(finding, Claim):
            assert finding.expected is not None, finding.name


@pytest.mark.parametrize("name", ["video", "video_audio", "audio", "video_audio.input"])
def test_the_engine_gives_the_texts_of_the_original_from_cached_features(name: str) -> None:
    folder = golden("imagebind-llm-e2e")
    family = load_family(NAME, checkpoint=folder)
    clip, encoded = watch(family, folder / "clip.mp4")
    assert {part: array.dtype for part, array in encoded.features.items()} == dict.fromkeys(
        ("video", "audio"), torch.float16
    )
    heard = {part: encoded.features[part] for part in ("video", "audio") if part in name}
    [expected] = [turn for turn in read_json(folder / "dialogue.json")["turns"] if turn["name"] == name]
    question = Turn(role="user", text=expected["instruction"])
    offline = Offline(family)
    offline.add(
        "answer",
        Conversation(clips=(clip,), turns=(question,), system=expected.get("input") or ""),
        [EncodedClip(heard, name)],
        SamplingParams(temperature=0.0, max_tokens=16),
    )
    outputs = list(offline.outputs())
    told = [token for output in outputs for token in output.token_ids if token != family.tokenizer.eos_id]
    assert told == [token for token in expected["generated_ids"] if token != family.tokenizer.eos_id]
    assert "".join(output.text for output in outputs).strip() == expected["text"]


def test_the_windows_are_those_of_the_pinned_pytorchvideo() -> None:
    for video in json.loads((golden("imagebind-llm-open") / "video_preprocess.json").read_bytes())["videos"]:
        chosen = window_indices(np.asarray(video["pts"]), Fraction(*video["time_base"]), 10)
        assert chosen == [index for pair in video["chosen_frame_indices"] for index in pair]
    windows = json.loads((golden("imagebind-llm-e2e") / "clip.json").read_bytes())["video_clips"]
    timeline = from_rate(1024, 512, keys=[True] * 135, time_base=Fraction(1, 12_800), whole=True)
    family = load_family(NAME)
    assert family.inputs is not None
    assert timeline.select(family.inputs.frames) == [index for window in windows for index in window["frame_ids"]]

"""Stages from a prompt to an answer, on the small model of Video-LLaVA -hf."""

import json
from pathlib import Path

import pytest
import torch

from model.families import load_family
from model.family import Family
from model.text.conversation import Clip
from model.verification.splicing import Mark, dialogue_findings, prompt_findings, spliced
from model.verification.stage import Claim, Finding, Stage
from model.weights import WeightsError

MARK = Mark(text="<image><image>", ids=(-200, -200))
CLIP = Clip(frame_indices=(0, 1), fps=1.0)


@pytest.fixture(scope="module")
def family() -> Family:
    return load_family("video-llava-hf")


@pytest.fixture
def video_tokens(family: Family) -> torch.Tensor:
    hidden = family.language_model.config.hidden_size
    return torch.randn(5, hidden, generator=torch.Generator().manual_seed(1))


def by_name(findings: list[Finding]) -> dict[str, Finding]:
    return {finding.name: finding for finding in findings}


def test_video_tokens_replace_the_marks(family: Family, video_tokens: torch.Tensor) -> None:
    embeds = spliced(family, [1, 40, -200, -200, 50], video_tokens, MARK)
    words = family.language_model.get_input_embeddings().weight
    assert torch.equal(embeds[0], torch.cat((words[[1, 40]], video_tokens, words[[50]])))


@pytest.mark.parametrize("ids", [[1, 40], [1, -200, 40], [1, -200, -200, -200], [-200, -200, 1, -200, -200]])
def test_a_prompt_with_other_marks_is_refused(family: Family, video_tokens: torch.Tensor, ids: list[int]) -> None:
    with pytest.raises(WeightsError, match="slot for a video"):
        spliced(family, ids, video_tokens, MARK)


def test_a_prompt_is_compared_if_the_folder_has_its_question(
    family: Family, video_tokens: torch.Tensor, tmp_path: Path
) -> None:
    prompt = "USER: <image><image>\nWhy? ASSISTANT:"
    encode = family.tokenizer.encode
    ids = [*encode("USER: ", bos=True), -200, -200, *encode("\nWhy? ASSISTANT:")]
    (tmp_path / "config.json").write_text(json.dumps({"question": "Why?", "prompt": prompt}))
    found = by_name(list(prompt_findings(family, tmp_path, ids, video_tokens, MARK)))
    assert list(found) == ["prompt", "input_ids", "inputs_embeds", "logits_first", "greedy_ids"]
    claims = [claim for claim in found.values() if isinstance(claim, Claim)]
    assert [claim.got for claim in claims] == [claim.expected for claim in claims] == [prompt, ids]
    (tmp_path / "config.json").write_text("{}")
    assert list(by_name(list(prompt_findings(family, tmp_path, ids, video_tokens, MARK)))) == list(found)[2:]


def test_a_second_turn_contains_the_reference_s_answer_to_the_first(
    family: Family, video_tokens: torch.Tensor, tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"generation": {"max_new_tokens": 3}}))
    dialogue = {"questions": ["Why?", "Where?"], "turns": [{"text": "A cat."}]}
    (tmp_path / "dialogue.json").write_text(json.dumps(dialogue))
    found = by_name(list(dialogue_findings(family, tmp_path, CLIP, video_tokens, MARK)))
    prompt, ids = found["turn2.prompt"], found["turn2.generated_ids"]
    assert isinstance(prompt, Claim) and isinstance(ids, Stage)
    assert prompt.got == "USER: <image><image>\nWhy? ASSISTANT: A cat.</s>USER: Where? ASSISTANT:"
    assert prompt.expected is None
    assert len(ids.tensor) == 3


def test_the_reference_s_ids_are_used_so_that_a_wrong_prompt_does_not_change_later_stages(
    family: Family, video_tokens: torch.Tensor, tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text("{}")
    dialogue = {"questions": ["Why?"], "turns": [{"input_ids": [1, -200, -200, 40]}]}
    (tmp_path / "dialogue.json").write_text(json.dumps(dialogue))
    found = by_name(list(dialogue_findings(family, tmp_path, CLIP, video_tokens, MARK)))
    claim, embeds = found["turn1.input_ids"], found["turn1.inputs_embeds"]
    assert isinstance(claim, Claim) and isinstance(embeds, Stage)
    assert claim.got != claim.expected
    assert embeds.tensor.shape[1] == 2 + len(video_tokens)

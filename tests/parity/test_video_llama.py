"""Video-LLaMA against tensors, prompts, frames, ids and texts that the original program made."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch

from model.engine.sampling_params import SamplingParams
from model.families import load_family
from model.families.video_llama.network import VideoLlamaNetwork
from model.families.video_llama.template import Llama2Template, VicunaTemplate
from model.families.video_llama.verification import TEMPLATES, verify_stages
from model.offline import Offline, watch
from model.text.conversation import Clip, Conversation, Slot, SpecialToken, Turn
from model.verification.comparison import Comparison
from model.verification.stage import Claim
from model.video.pixels import PixelSpec, normalize
from model.video.spec import FRAME_RULES
from tests.parity.goldens import TOLERANCE, read_json, tensors
from tests.published import golden

NAME = "video-llama"
STYLES, SENSES = ("vicuna", "llama_2"), ("video", "audio_video")


@pytest.mark.parametrize("name", ["video-llama-open", "video-llama-e2e"])
def test_every_stage_gives_the_tensors_prompts_and_texts_of_the_original(name: str) -> None:
    folder = golden(name)
    expected = tensors(folder / "expected.safetensors")
    findings = list(verify_stages(load_family(NAME, checkpoint=folder), folder))
    rows = list(Comparison(expected, torch.float32).rows(findings))
    assert [row for row in rows if row.verdict != "pass"] == []
    assert expected.keys() <= {row.name for row in rows}
    claims = {finding.name for finding in findings if isinstance(finding, Claim)}
    turns = {
        f"{style}.{sense}.turn{number}.{what}"
        for style in STYLES
        for sense in SENSES
        for number in (1, 2)
        for what in ("prompt", "segment_ids", "text")
    }
    of_open = {"prompt", "prompt_av", "video_segment_ids", "av_segment_ids"}
    assert claims == ({"clip.indices"} | turns if name.endswith("e2e") else of_open)


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("sense", SENSES)
def test_two_turns_about_a_file_give_the_ids_and_texts_of_the_original_from_cached_features(
    style: str, sense: str
) -> None:
    folder = golden("video-llama-e2e")
    family = load_family(NAME, checkpoint=folder)
    family.template = TEMPLATES[style]
    assert family.inputs is not None
    if sense == "video":
        family.inputs = replace(family.inputs, sound=None)
    clip, features = watch(family, folder / "clip.mp4")
    assert clip.parts == ({"video", "audio"} if sense == "audio_video" else {"video"})
    assert {array.dtype for array in features.features.values()} == {torch.float16}
    turns: list[Turn] = []
    offline = Offline(family)
    for expected in read_json(folder / "dialogue.json")["conversations"][style][sense]["turns"]:
        turns.append(Turn(role="user", text=expected["question"]))
        greedy = SamplingParams(temperature=0.0, max_tokens=len(expected["generated_ids"]))
        offline.add("answer", Conversation(clips=(clip,), turns=tuple(turns)), [features], greedy)
        outputs = list(offline.outputs())
        assert [token for output in outputs for token in output.token_ids] == expected["generated_ids"]
        assert "".join(output.text for output in outputs).strip() == expected["text"]
        turns.append(Turn(role="assistant", text=expected["text"]))


def test_frame_numbers_and_their_sentence_are_those_of_the_original() -> None:
    for name, expected in read_json(golden("video-llama-open") / "frame_indices.json").items():
        num_frames, fps = name.split("@")
        indices = FRAME_RULES["distinct-left-edges"](int(num_frames), 8)
        assert indices == expected["indices"]
        clip = Clip(frame_indices=tuple(indices), fps=float(fps))
        prompt = VicunaTemplate().render(Conversation(clips=(clip,), turns=(Turn(role="user", text="?"),)))
        assert prompt[-1] == f"</Video> {expected['msg']} ?###Assistant:"


def test_frames_become_pixels_as_in_the_original() -> None:
    reference = tensors(golden("video-llama-open") / "preprocess.safetensors")
    frames = np.repeat(np.repeat(reference["raw_frames"].numpy(), 7, axis=1), 7, axis=2)
    pixel_values = torch.from_numpy(normalize(frames, PixelSpec(fit="decoder")))  # [T, 3, 224, 224]
    torch.testing.assert_close(pixel_values[:, :, ::7, ::7], reference["pixel_values_sub7"], atol=2e-5, rtol=1e-5)


def test_the_prompts_of_both_styles_are_those_of_the_original() -> None:
    prompts = read_json(golden("video-llama-open") / "prompts.json")
    seen = Clip(frame_indices=(0, 31, 62, 93, 125, 156, 187, 218), fps=25.0)
    heard = replace(seen, parts=frozenset({"video", "audio"}))
    first = (Turn(role="user", text="First?"),)
    second = (*first, Turn(role="assistant", text="Answer."), Turn(role="user", text="Second?"))
    dog = (Turn(role="user", text="What is the dog doing? "),)
    system = prompts["llama2_class_default_system"].partition("<<SYS>>\n")[2].partition("\n<</SYS>>")[0]
    for name, template, conversation in (
        ("vicuna_video", VicunaTemplate(), Conversation(clips=(seen,), turns=dog)),
        ("vicuna_audio_video", VicunaTemplate(), Conversation(clips=(heard,), turns=dog)),
        ("vicuna_two_turn", VicunaTemplate(), Conversation(clips=(seen,), turns=second)),
        ("llama2_class_default_system", Llama2Template(), Conversation(clips=(seen,), turns=first, system=system)),
        ("llama2_two_turn_empty_system", Llama2Template(), Conversation(clips=(seen,), turns=second)),
    ):
        text = "".join(
            "<ImageHere>" if isinstance(piece, Slot) else piece.name if isinstance(piece, SpecialToken) else piece
            for piece in template.render(conversation)
        )
        assert text == prompts[name], name


def the_norm_is_finer(network: VideoLlamaNetwork) -> None:
    network.ln_vision.eps = 1e-6


def frames_are_not_numbered(network: VideoLlamaNetwork) -> None:
    network.video_frame_position_embedding.weight.data.zero_()


def the_last_block_is_missing(network: VideoLlamaNetwork) -> None:
    del network.visual_encoder.blocks[-1]


def stretches_are_not_numbered(network: VideoLlamaNetwork) -> None:
    network.audio_position_embedding.weight.data.zero_()


def sound_is_not_scaled(network: VideoLlamaNetwork) -> None:
    network.audio_encoder.log_scale.data.zero_()


def the_learned_value_is_missing(network: VideoLlamaNetwork) -> None:
    for name, parameter in network.audio_encoder.named_parameters():
        if name.endswith("bias_v"):
            parameter.data.zero_()


@pytest.mark.parametrize(
    ("mistake", "part"),
    [
        (the_norm_is_finer, "video"),
        (frames_are_not_numbered, "video"),
        (the_last_block_is_missing, "video"),
        (stretches_are_not_numbered, "audio"),
        (sound_is_not_scaled, "audio"),
        (the_learned_value_is_missing, "audio"),
    ],
)
def test_a_deliberate_mistake_is_detected(mistake: Callable[[VideoLlamaNetwork], None], part: str) -> None:
    folder = golden("video-llama-open")
    wrong = load_family(NAME, checkpoint=folder)
    assert isinstance(wrong.network, VideoLlamaNetwork)
    mistake(wrong.network)
    expected = tensors(folder / "expected.safetensors")[f"{part}_qformer_tokens"]
    inputs = tensors(folder / "inputs.safetensors")
    got = wrong.encode(inputs["pixel_values"].transpose(0, 1)[None], inputs["audio_mel"])[part]
    assert (got - expected).abs().max() / expected.abs().max() > TOLERANCE

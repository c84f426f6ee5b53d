"""Video-ChatGPT against tensors, prompts, frames and ids that the original code made."""

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from model.engine.engine import Engine, EngineConfig
from model.engine.sampling_params import SamplingParams
from model.families import load_family
from model.families.video_chatgpt.family import VideoChatGPTTemplate, key_map, verify_stages
from model.families.video_chatgpt.network import VideoChatGPTNetwork
from model.families.video_chatgpt.published import PUBLISHED_7B, read_sizes
from model.family import EncodedClip, Family, blank, build_prompt, tokenize_segments
from model.text.conversation import Clip, Conversation, Piece, Slot, SpecialToken, Turn
from model.text.sentencepiece import read_sentencepiece
from model.verification.stage import Claim, Stage
from model.video.pixels import PixelSpec, normalize, resize
from model.video.spec import FRAME_RULES
from model.weights import WeightsError, load_strict
from tests.parity.goldens import read_json, tensors
from tests.published import golden

FLOATS = ("frame_features", "spatio_temporal_features", "video_tokens", "inputs_embeds", "logits_first")
QUESTION = "What is happening in the video?"
ONE_CLIP = (Clip(frame_indices=(0, 1), fps=1.0),)


@pytest.fixture(scope="module")
def folder() -> Path:
    return golden("video-chatgpt-open")


@pytest.fixture(scope="module")
def family(folder: Path) -> Family:
    return load_family("video-chatgpt", checkpoint=folder)


@pytest.fixture(scope="module")
def expected(folder: Path) -> dict[str, Tensor]:
    return tensors(folder / "expected.safetensors")


@pytest.fixture(scope="module")
def inputs(folder: Path) -> dict[str, Tensor]:
    return tensors(folder / "inputs.safetensors")


def is_near(got: Tensor, expected: Tensor) -> bool:
    """Whether tensors are equal within the reference's tolerance, six times the noise of float32."""
    return got.shape == expected.shape and torch.allclose(got, expected, atol=5e-5, rtol=1e-5)


def test_every_stage_gives_the_tensors_of_the_original(folder: Path, expected: dict[str, Tensor]) -> None:
    findings = list(verify_stages(load_family("video-chatgpt", checkpoint=folder), folder))
    stages = {finding.name: finding.tensor for finding in findings if isinstance(finding, Stage)}
    claims = [finding for finding in findings if isinstance(finding, Claim)]
    assert [claim.name for claim in claims] == ["prompt", "input_ids"]
    assert [claim.name for claim in claims if claim.got != claim.expected] == []
    assert stages.keys() == expected.keys()
    for name, tensor in stages.items():
        assert (tensor.dtype, tensor.shape) == (expected[name].dtype, expected[name].shape), name
    assert [name for name in FLOATS if not is_near(stages[name], expected[name])] == []
    assert stages["greedy_ids"].tolist() == expected["greedy_ids"].tolist()
    # Float32 noise can cross a rounding boundary of float16; both sides of it are equal here.
    half, expected_half = (found["spatio_temporal_features_half"].float() for found in (stages, expected))
    torch.testing.assert_close(half, expected_half, atol=5e-5, rtol=2**-10)


def test_a_question_is_tokenised_encoded_and_answered_as_by_the_original(
    family: Family, inputs: dict[str, Tensor], expected: dict[str, Tensor]
) -> None:
    conversation = Conversation(clips=ONE_CLIP, turns=(Turn(role="user", text=QUESTION),))
    patch = (family.tokenizer.special_id("<vid_patch>"),) * family.num_video_tokens
    ids = [token for part in family.tokenize(conversation) for token in (patch if isinstance(part, Slot) else part)]
    assert ids == inputs["input_ids"][0].tolist()

    features = family.encode(inputs["pixel_values"].unsqueeze(0))["video"][0]
    assert features.shape == family.parts[0].shape
    assert is_near(features, expected["spatio_temporal_features"])

    engine = Engine(family.language_model, family.tokenizer, EngineConfig(max_model_len=family.max_model_len))
    prompt = build_prompt(family, conversation, [EncodedClip({"video": features}, "clip")])
    engine.add_request("one", prompt, SamplingParams(max_tokens=len(expected["greedy_ids"]), ignore_eos=True))
    answer = [token for _ in expected["greedy_ids"] for output in engine.step() for token in output.token_ids]
    assert answer == expected["greedy_ids"].tolist()


def test_prompts_read_as_in_the_original(folder: Path, family: Family) -> None:
    expected_prompts = read_json(folder / "prompts.json")
    first = Turn(role="user", text=QUESTION)
    later = (first, Turn(role="assistant", text="First answer."), Turn(role="user", text="And then?"))
    for turns, name in (((first,), "single_turn_infer"), (later, "two_turn_demo")):
        video = "<vid_patch>" * family.num_video_tokens
        assert rendered(turns, video=video) == expected_prompts[name].replace("<video>", f"<vid_start>{video}<vid_end>")
    assert VideoChatGPTTemplate.stop == (expected_prompts["stop_str"],)


def rendered(turns: tuple[Turn, ...], *, video: str) -> str:
    """A prompt as one text, with `video` for its video."""
    parts = VideoChatGPTTemplate().render(Conversation(clips=ONE_CLIP, turns=turns))
    return "".join(written(part, video=video) for part in parts)


def test_a_prompt_in_parts_is_tokenised_as_the_whole_of_it_is_by_a_tokenizer_that_knows_the_special_tokens() -> None:
    tokenizer = read_sentencepiece(
        golden("videochat-open") / "llama" / "tokenizer.model", added=PUBLISHED_7B.added_tokens
    )
    turns = (
        Turn(role="user", text=QUESTION),
        Turn(role="assistant", text="A cat."),
        Turn(role="user", text=" And then? "),
    )
    parts = tokenize_segments(tokenizer, VideoChatGPTTemplate().render(Conversation(clips=ONE_CLIP, turns=turns)))
    patch = tokenizer.special_id("<vid_patch>")
    ours = [token for part in parts for token in ((patch,) if isinstance(part, Slot) else part)]

    whole = tokenizer._core
    whole.add_special_tokens(["</s>", *PUBLISHED_7B.added_tokens])
    text = rendered(turns, video="<vid_patch>")
    assert ours == [tokenizer.bos_id, *whole.encode(text, add_special_tokens=False).ids]


def written(part: Piece, *, video: str) -> str:
    match part:
        case Slot():
            return video
        case SpecialToken(name):
            return name
        case text:
            return text


def test_frames_become_pixels_as_in_the_original(folder: Path) -> None:
    reference = tensors(folder / "preprocess.safetensors")
    spec = PixelSpec(size=224, fit="nearest")
    raw = reference["raw_frames"].numpy()
    squares = np.stack([resize(raw[index], spec) for index in FRAME_RULES["video-chatgpt"](len(raw), 100)])
    pixel_values = torch.from_numpy(normalize(squares, spec))  # [T, 3, 224, 224]
    torch.testing.assert_close(pixel_values[:, :, ::7, ::7], reference["pixel_values_sub7"], atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(pixel_values.mean((2, 3)), reference["pixel_values_mean"], atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(pixel_values.std((2, 3)), reference["pixel_values_std"], atol=1e-5, rtol=1e-5)


def norms_are_finer(network: VideoChatGPTNetwork) -> None:
    for module in network.vision_tower.modules():
        if isinstance(module, nn.LayerNorm):
            module.eps = 1e-6


def activation_is_exact(network: VideoChatGPTNetwork) -> None:
    for layer in network.vision_tower.encoder.layers:
        layer.mlp.activation_fn = nn.GELU()


def a_layer_is_missing(network: VideoChatGPTNetwork) -> None:
    del network.vision_tower.encoder.layers[-1]


def first_norm_is_missing(network: VideoChatGPTNetwork) -> None:
    network.vision_tower.pre_layrnorm.forward = lambda tokens: tokens  # type: ignore[assignment, method-assign]


def frames_are_shifted(network: VideoChatGPTNetwork) -> None:
    see = network.see
    network.see = lambda pixel_values: see(pixel_values.roll(1, 1))  # type: ignore[method-assign]


def padding_comes_first(network: VideoChatGPTNetwork) -> None:
    pool = network.pool
    network.pool = lambda patches: pool(patches).roll(1, 1)  # type: ignore[method-assign]


@pytest.mark.parametrize(
    "mistake",
    [
        norms_are_finer,
        activation_is_exact,
        a_layer_is_missing,
        first_norm_is_missing,
        frames_are_shifted,
        padding_comes_first,
    ],
)
def test_a_deliberate_mistake_is_detected(
    folder: Path,
    inputs: dict[str, Tensor],
    expected: dict[str, Tensor],
    mistake: Callable[[VideoChatGPTNetwork], None],
) -> None:
    wrong = load_family("video-chatgpt", checkpoint=folder)
    assert isinstance(wrong.network, VideoChatGPTNetwork)
    mistake(wrong.network)
    features = wrong.encode(inputs["pixel_values"].unsqueeze(0))["video"][0]
    assert not is_near(features, expected["spatio_temporal_features"])


def test_a_checkpoint_with_a_missing_or_extra_key_is_refused(folder: Path) -> None:
    weights, config = tensors(folder / "weights.safetensors"), read_sizes(folder / "config.json")
    network = blank(VideoChatGPTNetwork, config)
    names = key_map(config)
    needed = {key: target for key in weights if (target := names.target(key)) is not None}
    assert len(needed) == len(list(network.parameters()))
    for key, target in needed.items():
        rest = {name: tensor for name, tensor in weights.items() if name != key}
        with pytest.raises(WeightsError, match=f"no key covers: {re.escape(target)}"):
            load_strict(network, rest, key_map=names)
    with pytest.raises(WeightsError, match=r"unknown keys: model\.vision_tower\.bias"):
        load_strict(network, weights | {"model.vision_tower.bias": torch.zeros(1)}, key_map=names)

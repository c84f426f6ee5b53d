"""Video-ChatGPT against tensors, prompts, frames and ids that the original code made."""

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from model.conversation import Clip, Conversation, Part, SpecialToken, Turn, VideoSlot
from model.engine.engine import Engine, EngineConfig
from model.engine.sampling_params import SamplingParams
from model.families.video_chatgpt import (
    PUBLISHED_7B,
    VIDEO_FILE_KEYS,
    VideoChatGPT,
    VideoChatGPTTemplate,
    assemble,
    key_map,
    load,
    merge_published,
    verify_stages,
)
from model.family import EncodedClip, build_prompt, tokenize_segments
from model.networks.video_chatgpt import VideoChatGPTNetwork
from model.pixels import PixelSpec, normalize, resize
from model.sentencepiece import read_sentencepiece
from model.video import FRAME_RULES
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
def family(folder: Path) -> VideoChatGPT:
    return load(checkpoint=folder, device="cpu", dtype=torch.float32, quantization=None)


@pytest.fixture(scope="module")
def expected(folder: Path) -> dict[str, Tensor]:
    return tensors(folder / "expected.safetensors")


@pytest.fixture(scope="module")
def inputs(folder: Path) -> dict[str, Tensor]:
    return tensors(folder / "inputs.safetensors")


def is_near(got: Tensor, expected: Tensor) -> bool:
    """Within what the reference's README allows, some six times the noise of float32."""
    return got.shape == expected.shape and torch.allclose(got, expected, atol=5e-5, rtol=1e-5)


def test_every_stage_gives_the_tensors_of_the_original(folder: Path, expected: dict[str, Tensor]) -> None:
    stages = {
        stage.name: stage.tensor
        for stage in verify_stages(folder, device="cpu", dtype=torch.float32, quantization=None)
    }
    assert stages.keys() == expected.keys()
    for name, tensor in stages.items():
        assert (tensor.dtype, tensor.shape) == (expected[name].dtype, expected[name].shape), name
    assert [name for name in FLOATS if not is_near(stages[name], expected[name])] == []
    assert stages["greedy_ids"].tolist() == expected["greedy_ids"].tolist()
    # Where the noise of float32 lies across a border of float16, the two sides of it are equal.
    half, expected_half = (found["spatio_temporal_features_half"].float() for found in (stages, expected))
    torch.testing.assert_close(half, expected_half, atol=5e-5, rtol=2**-10)


def test_a_question_is_tokenised_encoded_and_answered_as_by_the_original(
    family: VideoChatGPT, inputs: dict[str, Tensor], expected: dict[str, Tensor]
) -> None:
    conversation = Conversation(clips=ONE_CLIP, turns=(Turn(role="user", text=QUESTION),))
    patch = (family.tokenizer.special_id("<vid_patch>"),) * family.num_video_tokens
    ids = [
        token for part in family.tokenize(conversation) for token in (patch if isinstance(part, VideoSlot) else part)
    ]
    assert ids == inputs["input_ids"][0].tolist()

    features = family.encode(inputs["pixel_values"].unsqueeze(0))[0]
    assert features.shape == family.feature_shape
    assert is_near(features, expected["spatio_temporal_features"])

    engine = Engine(family.language_model, family.tokenizer, EngineConfig(max_model_len=family.max_model_len))
    prompt = build_prompt(family, conversation, [EncodedClip(features, "clip")])
    engine.add_request("one", prompt, SamplingParams(max_tokens=len(expected["greedy_ids"]), ignore_eos=True))
    answer = [token for _ in expected["greedy_ids"] for output in engine.step() for token in output.token_ids]
    assert answer == expected["greedy_ids"].tolist()


def test_prompts_read_as_in_the_original(folder: Path, family: VideoChatGPT) -> None:
    told = read_json(folder / "prompts.json")
    first = Turn(role="user", text=QUESTION)
    later = (first, Turn(role="assistant", text="First answer."), Turn(role="user", text="And then?"))
    for turns, name in (((first,), "single_turn_infer"), (later, "two_turn_demo")):
        video = "<vid_patch>" * family.num_video_tokens
        assert rendered(turns, video=video) == told[name].replace("<video>", f"<vid_start>{video}<vid_end>")
    assert VideoChatGPTTemplate.stop == (told["stop_str"],)


def rendered(turns: tuple[Turn, ...], *, video: str) -> str:
    """A prompt in one text, with `video` for its video."""
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
    ours = [token for part in parts for token in ((patch,) if isinstance(part, VideoSlot) else part)]

    whole = tokenizer._core
    whole.add_special_tokens(["</s>", *PUBLISHED_7B.added_tokens])
    text = rendered(turns, video="<vid_patch>")
    assert ours == [tokenizer.bos_id, *whole.encode(text, add_special_tokens=False).ids]


def written(part: Part, *, video: str) -> str:
    match part:
        case VideoSlot():
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
def test_a_mistake_on_purpose_is_seen(
    folder: Path,
    inputs: dict[str, Tensor],
    expected: dict[str, Tensor],
    mistake: Callable[[VideoChatGPTNetwork], None],
) -> None:
    wrong = load(checkpoint=folder, device="cpu", dtype=torch.float32, quantization=None)
    mistake(wrong._network)
    features = wrong.encode(inputs["pixel_values"].unsqueeze(0))[0]
    assert not is_near(features, expected["spatio_temporal_features"])


def test_the_published_files_together_are_the_reference_s_weights(folder: Path, family: VideoChatGPT) -> None:
    weights = tensors(folder / "weights.safetensors")
    language, video, vision = published_files(weights)
    merged = merge_published(language=language, video=video, vision=vision)
    # The head of the three added tokens is in no file.
    untrained = weights["lm_head.weight"].index_fill(0, torch.arange(259, 262), 0)
    assert merged.keys() == weights.keys()
    assert all(torch.equal(merged[key], (weights | {"lm_head.weight": untrained})[key]) for key in weights)
    assemble(family._network.config, merged, device="cpu", dtype=torch.float32)


def published_files(weights: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]]:
    """The three files as they are published: each with things that the model does not use."""
    vision = {key: tensor for key, tensor in weights.items() if key.startswith("vision_model.")}
    video = {key: weights[key] for key in VIDEO_FILE_KEYS}
    language = {key: tensor for key, tensor in weights.items() if key not in vision}
    for key in ("lm_head.weight", "model.embed_tokens.weight"):
        language[key] = weights[key][:259] + (key != "lm_head.weight")
    language |= {
        "model.mm_projector.bias": torch.ones(1),
        "model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(1),
    }
    vision |= {"logit_scale": torch.ones(()), "text_model.final_layer_norm.bias": torch.ones(1)}
    vision |= {"vision_model.embeddings.position_ids": torch.arange(10), "visual_projection.weight": torch.ones(1, 1)}
    return language, video, vision


def test_published_files_that_do_not_belong_together_are_refused(folder: Path) -> None:
    language, video, vision = published_files(tensors(folder / "weights.safetensors"))
    for wrong, what in (
        ({"video": vision}, "must hold"),
        ({"video": {key: video[key] for key in sorted(video)[1:]}}, "must hold"),
        ({"language": {key: language[key] for key in language if key != "lm_head.weight"}}, "lacks lm_head"),
        ({"language": language | {"lm_head.weight": torch.ones(300, 48)}}, "more tokens"),
    ):
        with pytest.raises(WeightsError, match=what):
            merge_published(**{"language": language, "video": video, "vision": vision} | wrong)


def test_a_checkpoint_that_lacks_a_key_or_has_one_too_many_is_refused(folder: Path, family: VideoChatGPT) -> None:
    weights, config = tensors(folder / "weights.safetensors"), family._network.config
    with torch.device("meta"):
        network = VideoChatGPTNetwork(config)
    names = key_map(config)
    needed = {key: target for key in weights if (target := names.target(key)) is not None}
    assert len(needed) == len(list(network.parameters()))
    for key, target in needed.items():
        rest = {name: tensor for name, tensor in weights.items() if name != key}
        with pytest.raises(WeightsError, match=f"no key covers: {re.escape(target)}"):
            load_strict(network, rest, key_map=names)
    with pytest.raises(WeightsError, match=r"unknown keys: model\.vision_tower\.bias"):
        load_strict(network, weights | {"model.vision_tower.bias": torch.zeros(1)}, key_map=names)

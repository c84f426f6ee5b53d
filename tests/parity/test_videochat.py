"""VideoChat against tensors, prompts and ids that the original code made."""

import hashlib
import os
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from model.engine.sequence import TextSegment
from model.families import load_family
from model.families.videochat.family import KEY_MAP, VideoChatTemplate
from model.families.videochat.gmhra import GlobalTokenBlock
from model.families.videochat.network import VideoChatNetwork
from model.families.videochat.published import read_sizes
from model.family import EncodedClip, Family, build_prompt, tokenize_segments
from model.text.conversation import Clip, Conversation, Slot, Turn
from model.text.sentencepiece import read_sentencepiece
from model.verification.inputs import read_clip
from model.weights import WeightsError, load_strict
from tests.parity.goldens import Stages, assert_near, read_json, tensors
from tests.published import golden

SETS = ("videochat-open", "videochat-e2e")


def load(folder: Path) -> Family:
    return load_family("videochat", checkpoint=folder)


@pytest.fixture(scope="module")
def open_set() -> Path:
    return golden("videochat-open")


@pytest.fixture(scope="module")
def videochat(open_set: Path) -> Family:
    return load(open_set)


@pytest.fixture(scope="module")
def expected(open_set: Path) -> dict[str, Tensor]:
    return tensors(open_set / "expected.safetensors")


@pytest.fixture(scope="module")
def inputs(open_set: Path) -> dict[str, Tensor]:
    return tensors(open_set / "inputs.safetensors")


def test_every_stage_gives_the_tensors_of_the_original(
    videochat: Family, inputs: dict[str, Tensor], expected: dict[str, Tensor]
) -> None:
    network = videochat.network
    assert isinstance(network, VideoChatNetwork)
    stages = Stages.of(network)
    videochat.project("video", videochat.encode(inputs["video"])["video"])
    ours = stages.outputs

    # The original embeds all frames at once, as [B, C, T, h, w], and its global token is [1, B, C].
    patches = ours["visual_encoder.patch_embed"]
    assert_near(patches.transpose(0, 1).unsqueeze(0), expected["patch_embed"], "patch_embed")
    for number in range(len(network.visual_encoder.blocks)):
        assert_near(ours[f"visual_encoder.blocks.{number}"], expected[f"blocks.{number}"], f"block {number}")
    for number in range(len(network.visual_encoder.gmhra)):
        token = ours[f"visual_encoder.gmhra.{number}"].transpose(0, 1)
        assert_near(token, expected[f"gmhra.{number}"], f"global block {number}")
    assert_near(ours["visual_encoder"], expected["visual_encoder"], "visual_encoder")
    assert_near(ours["ln_vision"], expected["ln_vision"], "ln_vision")
    assert_near(ours["qformer.layernorm"], expected["qformer.embeddings"], "qformer.embeddings")
    for number in range(network.config.qformer.depth):
        layer = ours[f"qformer.encoder.layer.{number}"]
        assert_near(layer, expected[f"qformer.layer.{number}"], f"Q-Former layer {number}")
    assert_near(ours["llama_proj"], expected["inputs_llama"], "inputs_llama")


def test_features_of_a_video_a_batch_and_a_picture_are_those_of_the_original(
    videochat: Family, inputs: dict[str, Tensor], expected: dict[str, Tensor]
) -> None:
    features = videochat.encode(inputs["video"])["video"]
    assert features.shape[1:] == videochat.parts[0].shape
    assert_near(features, expected["query_output.last_hidden_state"], "features")
    assert_near(videochat.project("video", features), expected["inputs_llama"], "video")

    batch = videochat.encode(torch.cat((inputs["video_other"], inputs["video"])))["video"]
    assert_near(videochat.project("video", batch), expected["batch.inputs_llama"], "batch")

    picture = videochat.encode(inputs["image"])["video"]
    assert_near(videochat.project("video", picture), expected["image.inputs_llama"], "image")


@pytest.mark.parametrize("name", SETS)
def test_both_turns_of_a_dialogue_are_tokenised_spliced_and_answered_as_by_the_original(name: str) -> None:
    folder = golden(name)
    family, reference = load(folder), tensors(folder / "expected.safetensors")
    features = reference["query_output.last_hidden_state"][0]
    dialogue = read_json(folder / "dialogue.json")
    for number, turn in enumerate(dialogue["turns"], start=1):
        answers = [past["text"] for past in dialogue["turns"][: number - 1]]
        conversation = spoken(dialogue["video_message"], dialogue["questions"][:number], answers)

        assert text_of(VideoChatTemplate().render(conversation)) == turn["prompt"]
        assert list(map(list, text_ids(family, conversation))) == turn["segment_ids"]

        prompt = build_prompt(family, conversation, [EncodedClip({"video": features}, "clip")])
        embed = family.language_model.get_input_embeddings()
        rows = [
            embed(torch.tensor(part.token_ids)) if isinstance(part, TextSegment) else part.embeddings for part in prompt
        ]
        spliced = torch.cat(rows).unsqueeze(0)
        assert_near(spliced, reference[f"turn{number}.inputs_embeds"], f"prompt of turn {number}")

        expected_logits = reference[f"turn{number}.greedy_logits"]
        ids, logits = answer_greedily(family, spliced, num_tokens=len(expected_logits))
        assert ids == turn["generated_ids"]
        assert_near(logits, expected_logits, f"logits of turn {number}")
        assert family.tokenizer.decode(ids).split("###")[0].strip() == turn["text"]


def test_a_file_becomes_the_features_of_the_original() -> None:
    pytest.importorskip("av", reason="decoding needs PyAV")
    folder = golden("videochat-e2e")
    family, reference = load(folder), tensors(folder / "expected.safetensors")
    expected_clip = read_json(folder / "clip.json")
    clip, pixel_values = read_clip(family, folder)
    assert list(clip.frame_indices) == expected_clip["indices"]
    conversation = Conversation(clips=(clip,), turns=(Turn(role="user", text="?"),))
    assert expected_clip["msg"] in text_of(VideoChatTemplate().render(conversation))

    features = family.encode(pixel_values)["video"]
    assert_near(features, reference["query_output.last_hidden_state"], "features")
    assert_near(family.project("video", features), reference["inputs_llama"], "video tokens")


def test_a_checkpoint_with_a_missing_or_extra_key_is_refused(open_set: Path) -> None:
    weights = tensors(open_set / "weights.safetensors")
    with torch.device("meta"):
        network = VideoChatNetwork(read_sizes(open_set / "config.json"))
    needed = {key: target for key in weights if (target := KEY_MAP.target(key)) is not None}
    assert len(needed) == len(list(network.parameters()))
    for key, target in needed.items():
        rest = {name: tensor for name, tensor in weights.items() if name != key}
        with pytest.raises(WeightsError, match=f"no key covers: {re.escape(target)}"):
            load_strict(network, rest, key_map=KEY_MAP)
    with pytest.raises(WeightsError, match=r"unknown keys: t5_proj\.bias"):
        load_strict(network, weights | {"t5_proj.bias": torch.zeros(1)}, key_map=KEY_MAP)


def test_prompts_read_as_in_the_original() -> None:
    cases = read_json(golden("videochat-preproc") / "prompts.json")["cases"]
    for name in ("video_two_turns", "image_two_turns", "video_with_system"):
        case = cases[name]
        for number, turn in enumerate(case["turns"]):
            assert text_of(VideoChatTemplate().render(case_conversation(case, number))) == turn["prompt"], name


def test_prompts_are_tokenised_as_in_the_original() -> None:
    path = os.environ.get("REELTALK_LLAMA_TOKENIZER")
    if path is None:
        pytest.skip("set REELTALK_LLAMA_TOKENIZER to LLaMA's own tokenizer.model, which is not ours to ship")
    reference = read_json(golden("videochat-preproc") / "prompts.json")
    assert hashlib.sha256(Path(path).read_bytes()).hexdigest() == reference["tokenizer_sha256"]
    tokenizer = read_sentencepiece(Path(path))
    for name in ("video_two_turns", "image_two_turns", "video_with_system"):
        case = reference["cases"][name]
        for number, turn in enumerate(case["turns"]):
            segments = VideoChatTemplate().render(case_conversation(case, number))
            ids = [list(part) for part in tokenize_segments(tokenizer, segments) if isinstance(part, tuple)]
            assert ids == turn["segment_ids"], name


def test_text_that_acts_as_markup_in_the_original_stays_text_here() -> None:
    cases = read_json(golden("videochat-preproc") / "prompts.json")["cases"]

    kept_eos = cases["video_three_turns_eos_kept"]
    ours = text_of(VideoChatTemplate().render(case_conversation(kept_eos, 2)))
    assert ours == kept_eos["turns"][2]["prompt"].replace("</s>", "< /s>")

    # An empty answer loses its separator in the original, and the next question becomes part of it.
    empty = cases["empty_answer"]
    ours = text_of(VideoChatTemplate().render(case_conversation(empty, 1)))
    assert ours == empty["turns"][1]["prompt"].replace("Assistant:Human", "Assistant: ###Human")


def test_seconds_are_rounded_as_by_the_original() -> None:
    rows = read_json(golden("videochat-preproc") / "seconds.json")
    for row in rows:
        clip = Clip(frame_indices=tuple(row["indices"]), fps=row["fps"])
        conversation = Conversation(clips=(clip,), turns=(Turn(role="user", text="?"),))
        assert f" sampled at {row['text']} seconds." in text_of(VideoChatTemplate().render(conversation))
    python_differs = [row for row in rows if row["text"] != ", ".join(pythons_own(row))]
    assert python_differs, "the reference tells the two ways of rounding apart"


def pythons_own(row: dict[str, list[int] | float]) -> list[str]:
    indices, fps = row["indices"], row["fps"]
    assert isinstance(indices, list) and isinstance(fps, float)
    return [str(round(index / fps, 1)) for index in indices]


def global_blocks(network: VideoChatNetwork) -> list[GlobalTokenBlock]:
    return [block for block in network.visual_encoder.gmhra if isinstance(block, GlobalTokenBlock)]


def global_blocks_are_not_loaded(network: VideoChatNetwork) -> None:
    torch.manual_seed(0)
    for block in global_blocks(network):
        assert isinstance(block.mlp.c_fc, nn.Linear)
        fresh = type(block)(block.ln_1.normalized_shape[0], num_heads=2, mlp_width=block.mlp.c_fc.out_features)
        block.load_state_dict(fresh.state_dict())


def positions_come_before_the_norm(network: VideoChatNetwork) -> None:
    def forward(block: GlobalTokenBlock, token: Tensor, frames: Tensor) -> Tensor:
        positioned = torch.cat((frames[:, :, :1], block._with_positions(frames[:, :, 1:])), dim=2)
        token = token + block.attn(block.ln_1(token), block.ln_3(positioned).flatten(1, 2))
        added: Tensor = block.mlp(block.ln_2(token))
        return token + added

    for block in global_blocks(network):
        block.forward = partial(forward, block)  # type: ignore[method-assign]


def epsilons_are_exchanged(network: VideoChatNetwork) -> None:
    norms = [module for module in network.qformer.modules() if isinstance(module, nn.LayerNorm)]
    assert {norm.eps for norm in norms} == {1e-12} and network.ln_vision.eps == 1e-5
    for norm in norms:
        norm.eps = 1e-5
    network.ln_vision.eps = 1e-12


def queries_are_exchanged(network: VideoChatNetwork) -> None:
    queries = torch.cat((network.extra_query_tokens, network.query_tokens), dim=1)
    split = [network.query_tokens.shape[1], network.extra_query_tokens.shape[1]]
    network.query_tokens.data, network.extra_query_tokens.data = torch.split(queries, split, dim=1)


@pytest.mark.parametrize(
    "mistake",
    [
        global_blocks_are_not_loaded,
        positions_come_before_the_norm,
        epsilons_are_exchanged,
        queries_are_exchanged,
    ],
)
def test_a_deliberate_mistake_is_detected(
    open_set: Path,
    inputs: dict[str, Tensor],
    expected: dict[str, Tensor],
    mistake: Callable[[VideoChatNetwork], None],
) -> None:
    wrong = load(open_set)
    network = wrong.network
    assert isinstance(network, VideoChatNetwork)

    stages = Stages.of(network)

    def compare() -> None:
        out = wrong.project("video", wrong.encode(inputs["video"])["video"])
        for number in range(network.config.qformer.depth):
            name = f"qformer.encoder.layer.{number}"
            assert_near(stages.outputs[name], expected[f"qformer.layer.{number}"], name)
        assert_near(out, expected["inputs_llama"], "inputs_llama")

    compare()
    with torch.no_grad():
        mistake(network)
    with pytest.raises(AssertionError, match="off by"):
        compare()


def spoken(message: str, questions: list[str], answers: list[str]) -> Conversation:
    """A conversation about one video with a given message; at ten frames a second, frames are tenths of a second."""
    tenths = tuple(int(whole) * 10 + int(tenth) for whole, tenth in re.findall(r"(\d+)\.(\d)", message))
    clips = (Clip(frame_indices=tenths, fps=10.0) if tenths else Clip(frame_indices=(0,), fps=1, media="image"),)
    turns = [Turn(role="user", text=questions[0])]
    for answer, question in zip(answers, questions[1:], strict=True):
        turns += [Turn(role="assistant", text=answer), Turn(role="user", text=question)]
    return Conversation(clips=clips, turns=tuple(turns))


def case_conversation(case: dict[str, object], number: int) -> Conversation:
    turns, message, system = case["turns"], case["first_message"], case["system"]
    assert isinstance(turns, list) and isinstance(message, str) and isinstance(system, str)
    questions = [turn["question"] for turn in turns[: number + 1]]
    conversation = spoken(message, questions, [turn["answer"] for turn in turns[:number]])
    return Conversation(clips=conversation.clips, turns=conversation.turns, system=system)


def text_of(segments: tuple[str | Slot, ...]) -> str:
    """A rendered prompt as one text, with the marker at which the original splits it."""
    texts = [part for part in segments if isinstance(part, str)]
    marker = "<ImageHere>" if texts[0].endswith("<Image>") else "<VideoHere>"
    return "".join(marker if isinstance(part, Slot) else part for part in segments)


def text_ids(family: Family, conversation: Conversation) -> list[tuple[int, ...]]:
    return [part for part in family.tokenize(conversation) if isinstance(part, tuple)]


def answer_greedily(family: Family, spliced: Tensor, *, num_tokens: int) -> tuple[list[int], Tensor]:
    """Decode with a full forward pass of the whole sequence for every token."""
    ids: list[int] = []
    rows: list[Tensor] = []
    model = family.language_model
    with torch.no_grad():
        for _ in range(num_tokens):
            rows.append(model(inputs_embeds=spliced).logits[0, -1])
            ids.append(int(rows[-1].argmax()))
            added = model.get_input_embeddings()(torch.tensor([[ids[-1]]]))
            spliced = torch.cat((spliced, added), dim=1)
    return ids, torch.stack(rows)

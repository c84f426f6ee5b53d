"""The prompt of ImageBind-LLM, and its small model, from vectors of clips to what the layers add."""

import re
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from model.engine.engine import Engine, EngineConfig
from model.engine.sampling_params import SamplingParams
from model.engine.sequence import ADDED
from model.families import load_family
from model.families.imagebind_llm.family import PUBLISHED_SAMPLING, TINY, AlpacaTemplate, value_counts
from model.families.imagebind_llm.verification import injected
from model.family import EncodedClip, Family, build_condition, build_prompt, count_prompt_tokens
from model.memory_estimate import MIB, estimate_memory
from model.text.conversation import Conversation
from model.verification.decoding import decode_greedily
from tests.model.families.conversations import asked, rendered

TASK = "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
GREEDY = SamplingParams(temperature=0.0, max_tokens=8, ignore_eos=True)

hostile = st.lists(
    st.sampled_from(["#", "##", "###", " ", "\n", "Instruction:", "Input", "Response:", "response:", "ask", "</s>"]),
    max_size=8,
).map("".join)


@pytest.fixture(scope="module")
def tiny() -> Family:
    return load_family("imagebind-llm")


def clip(seed: int, *, heard: bool = False) -> EncodedClip:
    generator = torch.Generator().manual_seed(seed)
    parts = ("video", "audio") if heard else ("video",)
    return EncodedClip({part: torch.randn(1, 32, generator=generator) for part in parts}, f"clip {seed} {heard}")


def test_a_question_is_the_instruction_of_alpaca_s_prompt_and_the_video_has_no_place_in_it() -> None:
    assert rendered(AlpacaTemplate(), asked("What do you see?")) == (
        f"{TASK}### Instruction:\nWhat do you see?\n\n### Response:"
    )


def test_the_system_text_is_the_input_and_later_turns_repeat_the_headings() -> None:
    assert rendered(AlpacaTemplate(), asked("Translate.", " Chat.\n", "Again?", system="A cat.")) == (
        "Below is an instruction that describes a task, paired with an input that provides further context. Write a "
        "response that appropriately completes the request.\n\n### Instruction:\nTranslate.\n\n### Input:\nA cat.\n\n"
        "### Response:Chat.\n\n### Instruction:\nAgain?\n\n### Response:"
    )


@given(hostile, hostile, hostile, hostile)
def test_no_text_can_imitate_a_turn(system: str, first: str, answer: str, second: str) -> None:
    text = rendered(AlpacaTemplate(), asked(first, answer, second, system=system))
    headings = re.findall(r"###\s*(\w+)", text, re.IGNORECASE)
    known = [name.lower() for name in headings if name.lower() in {"instruction", "input", "response"}]
    expected = ["instruction", "response", "instruction", "response"]
    if system:
        expected.insert(1, "input")
    assert known == expected


def test_the_small_model_hears_and_takes_both_ends_of_five_windows(tiny: Family) -> None:
    assert tiny.inputs is not None and tiny.inputs.sound is not None
    assert (tiny.inputs.frames.count, tiny.inputs.frames.rule, tiny.inputs.pixels.crops) == (10, "windows", 3)
    assert (tiny.inputs.pixels.fit, tiny.inputs.pixels.crop_rounding) == ("bilinear", "up")
    assert (tiny.inputs.sound.count, tiny.inputs.sound.rule) == (3, "end-points")
    assert [(part.name, part.optional) for part in tiny.parts] == [("video", False), ("audio", True)]
    assert tiny.num_video_tokens == 0
    assert tiny.default_sampling == PUBLISHED_SAMPLING
    assert count_prompt_tokens(tiny, asked("What?")) == count_prompt_tokens(tiny, asked("What?", num_clips=2))


def test_sound_and_other_clips_change_what_the_layers_add(tiny: Family) -> None:
    cases = ([clip(1)], [clip(2)], [clip(1, heard=True)], [clip(1), clip(2)])
    conditions = [build_condition(tiny, clips) for clips in cases]
    assert len({each.identity for each in conditions if each is not None}) == len(cases)
    added = [each.tensors[ADDED] for each in conditions if each is not None]
    assert all(each.shape == (3, 4, 16) for each in added)
    assert all((one - other).abs().max() > 1e-3 for n, one in enumerate(added) for other in added[:n])
    assert all(bool((each[0] == 0).all()) and bool(each[1:].all()) for each in added), "the last two layers of three"
    assert build_condition(tiny, []) is None


def test_the_engine_adds_in_every_layer_what_a_plain_forward_pass_adds() -> None:
    """Also when the engine has packed the linear layers, from which a later condition is computed."""
    plain, family = load_family("imagebind-llm"), load_family("imagebind-llm")
    config = EngineConfig(max_num_seqs=4, block_size=4, condition_shapes=family.condition_shapes)
    engine = Engine(family.language_model, family.tokenizer, config)
    cases = {"one": [clip(1)], "two": [clip(2, heard=True)], "none": []}
    question = replace(asked("What do you see?"), clips=())
    for name, clips in cases.items():
        prompt = build_prompt(family, question, [])
        engine.add_request(name, prompt, GREEDY, condition=build_condition(family, clips))
    received: dict[str, list[int]] = {name: [] for name in cases}
    while engine.has_work:
        for output in engine.step():
            received[output.request_id] += output.token_ids
    for name, clips in cases.items():
        assert received[name] == plain_answer(plain, question, clips), name
    assert len({tuple(ids) for ids in received.values()}) == len(cases)


def plain_answer(family: Family, question: Conversation, clips: list[EncodedClip]) -> list[int]:
    [ids] = family.tokenize(question)
    assert isinstance(ids, tuple)
    condition = build_condition(family, clips)
    added = torch.zeros(family.condition_shapes[ADDED]) if condition is None else condition.tensors[ADDED]
    with injected(family.language_model, added), torch.no_grad():
        prompt = family.language_model.get_input_embeddings()(torch.tensor([ids]))
        return decode_greedily(family.language_model, prompt, max_tokens=8, eos=-1)[0]


def test_the_published_sizes_have_the_published_numbers_of_parameters() -> None:
    counts = value_counts("7b")
    assert counts.modules["ImageBind vision"] == 632_829_440
    assert counts.modules["bridge"] + 32 * 4096 == 608_321_536
    assert counts.condition_values == 32 * 32 * 128
    low_rank_of_values = 32 * 2 * 16 * 4096
    assert counts.modules["adapter"] == 32 * 4096 + 32 * 32 + low_rank_of_values
    memory = estimate_memory(counts, torch.float16)
    assert memory.kv_bytes_per_token == 524_288
    assert memory.condition_bytes == MIB // 4


def test_sizes_without_sound_survive_json() -> None:
    deaf = replace(TINY, audio=None)
    assert type(TINY).from_json(deaf.to_json()) == deaf
    assert type(TINY).from_json(TINY.to_json()) == TINY

"""Attention targets are the things that an answer is about, and the times that it copies."""

from dataclasses import replace
from random import Random

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from model.text.tokenizer import Tokenizer
from tests.training.some_scenes import LATE, SCENE, THING
from training.dialogues import Exchange, Kind, ask
from training.pointing import SUPERVISED_HEADS, attention_loss, attention_targets, recorded_projections
from training.prompts import Example, clip_of, conversation_about, example
from training.scenes import COLOUR_NAMES, Scene
from training.vocabulary import learn_pieces

SMALL = replace(THING, shape="square", colour="white", size="small", motion="up", centre=(0.2, 0.4))
CROWD = replace(SCENE, things=(LATE, THING, SMALL))


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer(learn_pieces(5, num_clips=60))


def dialogue(tokenizer: Tokenizer, scene: Scene, kind: Kind, *, answer: str) -> tuple[Example, list[Exchange]]:
    """A dialogue whose last answer has a certain beginning."""
    for seed in range(500):
        exchanges = ask(Random(seed), scene, kind)
        if exchanges and exchanges[-1].answer.startswith(answer):
            return example(tokenizer, conversation_about(clip_of(scene, seconds=0, fps=1), exchanges)), exchanges
    raise AssertionError(f"nothing of the kind {kind} is answered with {answer}")


def looks(tokenizer: Tokenizer, scene: Scene, kind: Kind, answer: str) -> list[tuple[str, str]]:
    """Each token of the last answer, and the colours that the token before it attends to."""
    one, exchanges = dialogue(tokenizer, scene, kind, answer=answer)
    begin = len(one.is_answer) - one.is_answer[::-1].index(False)
    return [
        (tokenizer.token_bytes(one.after[each.position + 1]).decode(), " ".join(COLOUR_NAMES[c] for c in each.colours))
        for each in attention_targets(tokenizer, one, exchanges)
        if each.position + 1 >= begin and not each.times
    ]


def test_an_answer_about_a_thing_attends_to_it_from_its_first_word(tokenizer: Tokenizer) -> None:
    found = looks(tokenizer, CROWD, "direction", "The red circle")
    assert [token for token, _ in found][:3] == [" The", " red", " circle"]
    assert {colours for _, colours in found} == {"red"}


def test_a_description_attends_to_all_things_and_then_to_each_in_turn(tokenizer: Tokenizer) -> None:
    found = looks(tokenizer, CROWD, "describe", "There are three objects")
    assert found[0] == (" There", "red blue white")
    assert [colours for token, colours in found if token in {" circle", " star", " square"}] == ["red", "blue", "white"]
    assert [colours for token, colours in found if token in {" small", " large"}] == ["red", "blue", "white"]


def test_an_answer_about_an_absent_thing_attends_to_no_thing(tokenizer: Tokenizer) -> None:
    assert {colours for _, colours in looks(tokenizer, CROWD, "absent", "There is no")} == {""}
    assert {colours for _, colours in looks(tokenizer, CROWD, "exists", "No, there is no")} == {""}


def test_a_list_attends_to_each_of_its_things_in_turn(tokenizer: Tokenizer) -> None:
    both = replace(CROWD, things=(THING, replace(LATE, motion="left", life="always")))
    found = looks(tokenizer, both, "which_moves", "The red circle and the blue star")
    assert found[0] == (" The", "red")
    assert dict(found)[" circle"] == "red"
    assert dict(found)[" star"] == "blue"


def test_a_time_is_copied_from_its_place_in_the_prompt(tokenizer: Tokenizer) -> None:
    one, exchanges = dialogue(tokenizer, SCENE, "appears", answer="The blue star appears at")
    copied = [each for each in attention_targets(tokenizer, one, exchanges) if each.times]
    text = "".join(tokenizer.token_bytes(one.after[each.position + 1]).decode() for each in copied)
    assert f"appears at{text} seconds" in exchanges[-1].answer
    for each in copied:
        assert all(one.after[place] == one.after[each.position + 1] for place in each.times)
        assert max(each.times) < one.is_answer.index(True)


def test_the_attention_loss_is_small_for_right_targets_and_large_for_wrong_ones() -> None:
    layer, head = SUPERVISED_HEADS["things"]
    config = LlamaConfig(
        vocab_size=20, hidden_size=32, intermediate_size=32, num_hidden_layers=3, num_attention_heads=2
    )
    torch.manual_seed(0)
    llama = LlamaForCausalLM(config).eval()
    ids = torch.randint(0, 20, (2, 9))
    llama.set_attn_implementation("eager")
    with torch.no_grad(), recorded_projections(llama) as seen:
        weights = llama(ids, output_attentions=True).attentions[layer][:, head]  # [B, L, L]
    for row, place, at in ((0, 5, 2), (1, 8, 8), (1, 3, 0)):
        cost = attention_loss(llama, seen, (layer, head), torch.tensor([[row, place, at, 1]]))
        torch.testing.assert_close(cost, -weights[row, place, at].log())
    both = attention_loss(llama, seen, (layer, head), torch.tensor([[0, 5, 1, 2], [0, 5, 3, 2]]))
    torch.testing.assert_close(both, -weights[0, 5, [1, 3]].log().mean())

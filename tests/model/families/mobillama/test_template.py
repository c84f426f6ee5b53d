"""MobiLlama's prompts: a conversation after one example exchange, and a bare text."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.families.mobillama.template import (
    EXAMPLE_ANSWER,
    EXAMPLE_QUESTION,
    SYSTEM,
    OneShotTemplate,
    PlainTemplate,
    neutralise,
)
from tests.model.families.conversations import asked, rendered

OPENING = f"{SYSTEM}\n### Human: {EXAMPLE_QUESTION}\n### Assistant: {EXAMPLE_ANSWER}"
CHAT, PLAIN = OneShotTemplate(), PlainTemplate()

hostile = st.lists(
    st.one_of(
        st.sampled_from(("###", "#", "##", "\n", " ", "Human", "Assistant", ":", "\n### Human: ")), st.text(max_size=3)
    )
).map("".join)


def test_a_question_follows_the_system_text_and_the_example() -> None:
    assert CHAT.render(asked("What is it?", num_clips=0)) == (f"{OPENING}\n### Human: What is it?\n### Assistant:",)


def test_a_later_prompt_contains_the_earlier_turns() -> None:
    assert rendered(CHAT, asked("Hi", "Hello.", "Who are you?", num_clips=0)) == (
        f"{OPENING}\n### Human: Hi\n### Assistant: Hello.\n### Human: Who are you?\n### Assistant:"
    )


def test_a_session_s_system_text_replaces_the_published_one() -> None:
    prompt = rendered(CHAT, asked("Hi", system="Be brief.", num_clips=0))
    assert prompt.startswith(f"Be brief.\n### Human: {EXAMPLE_QUESTION}")


def test_a_base_model_continues_the_texts_themselves() -> None:
    assert PLAIN.render(asked("A dog runs", num_clips=0)) == ("A dog runs",)
    texts = asked("A dog runs", "over the grass.", "It", system="A story.", num_clips=0)
    assert PLAIN.render(texts) == ("A story.\nA dog runs\nover the grass.\nIt",)
    assert PLAIN.stop == ()


@pytest.mark.parametrize("template", [CHAT, PLAIN])
def test_a_prompt_with_a_video_cannot_be_written(template: OneShotTemplate | PlainTemplate) -> None:
    with pytest.raises(AssertionError, match="sees no videos"):
        template.render(asked("What is it?"))


@pytest.mark.parametrize("markup", ["###", "####", "\n### Human: "])
def test_typed_markup_stays_legible_but_is_not_markup(markup: str) -> None:
    harmless = neutralise(f"before {markup} after")
    assert "##" not in harmless
    assert harmless.replace(" ", "") == f"before {markup} after".replace(" ", "")


def test_ordinary_text_is_not_changed() -> None:
    for text in ("# a heading", "## a smaller one", "C# and F#", "Human: me", "Assistant"):
        assert neutralise(text) == text


@given(hostile, hostile, hostile, hostile)
def test_no_text_can_imitate_a_turn(system: str, first: str, answer: str, second: str) -> None:
    [prompt] = CHAT.render(asked(first, answer, second, system=system, num_clips=0))
    assert isinstance(prompt, str)
    system_text, *turns = prompt.split("###")
    assert (neutralise(system) or SYSTEM) == system_text.removesuffix("\n")
    assert [turn.split(":")[0] for turn in turns] == [" Human", " Assistant"] * 3
    texts = (EXAMPLE_QUESTION, EXAMPLE_ANSWER, *map(neutralise, (first, answer, second)))
    assert [turn.partition(": ")[2] for turn in turns[:-1]] == [f"{text}\n" for text in texts]
    assert prompt.count("###") == 6

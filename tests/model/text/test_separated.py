"""The prompt with roles as words: its form, and texts that try to imitate it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.text.conversation import Slot, SpecialToken
from model.text.separated import SeparatedTemplate, neutralise
from model.text.tokenizer import plain_tokenizer
from tests.model.families.conversations import asked, rendered

NAMES = ("s", "unk", "pad", "image", "video", "vid_patch", "vid_start", "vid_end", "im_patch", "im_start", "im_end")
MARKUP = ("USER:", "ASSISTANT:", "</s>", *(f"<{name}>" for name in NAMES))
TOKENIZER = plain_tokenizer(added=[f"<{name}>" for name in NAMES if name not in {"s", "unk"}])

hostile = st.lists(
    st.one_of(
        st.sampled_from((*MARKUP, "USER", "ASSISTANT", ":", "</", "<", ">", "▁", " ", "\n", "picture")),
        st.text(max_size=3),
    )
).map("".join)


class Polite(SeparatedTemplate):
    """A family with a system text, and a demo that changes a word."""

    system = "Be polite."

    def reword(self, text: str) -> str:
        return text.replace("picture", "image")


def test_the_first_question_follows_its_video_and_the_answer_follows_the_prompt() -> None:
    assert SeparatedTemplate().render(asked("What is it?")) == ("USER: ", Slot(0), "\nWhat is it? ASSISTANT:")


def test_a_later_prompt_contains_the_earlier_turns_and_the_video_once() -> None:
    assert Polite().render(asked("What is it?", " A cat.\n", "Where?", "", "Why?")) == (
        "Be polite. USER: ",
        Slot(0),
        "\nWhat is it? ASSISTANT: A cat.",
        SpecialToken("</s>"),
        "USER: Where? ASSISTANT: ",
        SpecialToken("</s>"),
        "USER: Why? ASSISTANT:",
    )


def test_each_of_several_videos_is_on_a_line_of_its_own() -> None:
    text = rendered(SeparatedTemplate(), asked("Which is longer?", num_clips=2))
    assert text == "USER: [video]\n[video]\nWhich is longer? ASSISTANT:"


def test_a_conversation_without_videos_is_one_text() -> None:
    assert SeparatedTemplate().render(asked("Hello?", num_clips=0)) == ("USER: Hello? ASSISTANT:",)


def test_a_session_s_system_text_replaces_the_published_one() -> None:
    text = rendered(Polite(), asked("Hello?", num_clips=0, system="Be brief."))
    assert text == "Be brief. USER: Hello? ASSISTANT:"


def test_a_word_that_the_demo_changes_is_changed_in_questions_alone() -> None:
    text = rendered(Polite(), asked("A picture?", "A picture.", "A <picture>?", num_clips=0))
    assert text == "Be polite. USER: A image? ASSISTANT: A picture.</s>USER: A < image>? ASSISTANT:"


@pytest.mark.parametrize("markup", MARKUP)
def test_typed_markup_stays_legible_but_is_not_markup(markup: str) -> None:
    harmless = neutralise(f"before {markup} after")
    assert markup not in harmless
    assert harmless.replace(" ", "") == f"before{markup}after"


def test_ordinary_text_is_not_changed() -> None:
    for text in ("a < b > c", "<b>bold</b>", "the user: me", "USER guide", "video"):
        assert neutralise(text) == text


@given(hostile, hostile, hostile, hostile, st.sampled_from([SeparatedTemplate(), Polite()]))
def test_no_text_can_imitate_a_turn_or_a_special_token(
    system: str, first: str, answer: str, second: str, template: SeparatedTemplate
) -> None:
    parts = template.render(asked(first, answer, second, system=system))
    assert [part for part in parts if not isinstance(part, str)] == [Slot(0), SpecialToken("</s>")]
    texts = [part for part in parts if isinstance(part, str)]
    ids = [TOKENIZER.encode(text) for text in texts]
    for role in ("USER:", "ASSISTANT:"):
        assert sum(text.count(role) for text in texts) == 2
        assert sum(occurrences(row, TOKENIZER.encode(role)[1:]) for row in ids) == 2
    assert not any(markup in text for text in texts for markup in MARKUP[2:])
    specials = {TOKENIZER.special_id(markup) for markup in MARKUP[2:] if markup != "<unk>"}
    assert not specials & {token for row in ids for token in row}


def occurrences(row: list[int], wanted: list[int]) -> int:
    """How often the ids of a marker stand in a row of ids."""
    return sum(row[start : start + len(wanted)] == wanted for start in range(len(row)))

"""The page with several models: the choice in the header, a session's model, moments, and chats without a video."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.browser import Browser, Page
from tests.e2e.test_page import HAS_ENDED, IS_READY, LAST, ask, phone
from tests.running import RunningService

MODELS: list[dict[str, Any]] = [
    {
        "id": "tiny",
        "family": "videochat",
        "state": "ready",
        "is_default": True,
        "modalities": ["video"],
        "time_axis": None,
    },
    {"id": "vtimellm-7b", "state": "loading", "is_default": False, "modalities": ["video"], "time_axis": 100},
    {"id": "mobillama-05b-chat", "state": "ready", "is_default": False, "modalities": ["text"], "time_axis": None},
    {"id": "video-chatgpt-7b", "state": "ready", "is_default": False, "modalities": ["video"], "time_axis": None},
    {"id": "video-llava-7b", "state": "broken", "is_default": False, "modalities": ["video"], "time_axis": None},
]

# The service of these tests serves the model "tiny". This list of models is given to the page instead of the service's,
# and requests that name a model are recorded and sent without it; a session without videos gets a reply of its own.
SEVERAL_MODELS = """{
  const real = window.fetch;
  window.named = [];
  window.served = %s;
  window.fetch = async (url, options = {}) => {
    if (url === "/v1/models") return Response.json({ object: "list", data: window.served });
    const [path, query] = url.split("?model=");
    if (query) window.named.push([path.replace(/_[0-9a-f]+/u, "_"), query]);
    if (path === "/v1/sessions" && options.method === "POST") {
      const { model, ...body } = JSON.parse(options.body);
      window.named.push([path, model]);
      if (!body.video_ids.length) return Response.json(textSession(model));
      const session = await (await real(path, { ...options, body: JSON.stringify(body) })).json();
      window.models = { ...window.models, [session.id]: model };
      return Response.json({ ...session, model });
    }
    if (path.endsWith("/ses_" + "0".repeat(32))) return Response.json(textSession("mobillama-05b-chat"));
    if (path.endsWith("/ses_" + "0".repeat(32) + "/messages")) return Response.json({ object: "list", data: [] });
    return real(path, options);
  };
  const textSession = (model) => ({ id: "ses_" + "0".repeat(32), object: "session", video_ids: [], model, system: "",
    frames: { count: null, start: null, end: null }, created_at: 1, running_answer_id: null });
}"""

# Answers any question with one moment.
ANSWER_WITH_A_MOMENT = """{
  const seen = window.fetch;
  window.fetch = async (url, options) => {
    if (!url.endsWith("/messages")) return seen(url, options);
    const moment = { video_id: "vid_", start: 1.2, end: 2.1, text_start: 2, text_end: 15 };
    const done = { finish_reason: "stop", usage: null, timings: { total_time_ms: 5 }, moments: [moment] };
    const log = [["answer", { id: "ans_1" }], ["delta", { text: "🙂 From 17 to 34, it comes." }], ["done", done]];
    return new Response(log.map(([name, data], number) =>
      `id: ${number + 1}\\nevent: ${name}\\ndata: ${JSON.stringify(data)}\\n\\n`).join(""));
  };
}"""


@pytest.fixture
def page(browser: Browser, service: RunningService) -> Iterator[Page]:
    """The page of a service that seems to serve several models."""
    with browser.page("about:blank") as page:
        page.call("Page.addScriptToEvaluateOnNewDocument", source=SEVERAL_MODELS % json.dumps(MODELS))
        page.open(f"{service.url}/")
        page.wait_for("document.querySelector('#model-choice').checkVisibility()")
        yield page


def choose(page: Page, model: str) -> None:
    """Choose a model like a user: set the value and fire the event of the control."""
    page.evaluate(f"""((select) => {{
        select.value = {json.dumps(model)};
        select.dispatchEvent(new Event("change", {{ bubbles: true }}));
    }})(document.querySelector("#model-select"))""")


def test_one_model_is_named_without_a_choice(browser: Browser, service: RunningService) -> None:
    with browser.page(f"{service.url}/") as page:
        page.wait_for("document.querySelector('#model').checkVisibility()")
        assert page.text("#model") == "Model tiny"
        assert not page.evaluate("document.querySelector('#model-choice').checkVisibility()")
        assert "drawn shapes" in page.text("#start .model-note")


def test_only_the_model_that_ships_is_said_to_know_drawn_shapes(page: Page) -> None:
    note = "import('/static/wording.js').then(({modelNote}) => modelNote(%s))"
    assert "drawn shapes" in page.evaluate(note % '{id: "tiny", family: "videochat"}')
    assert page.evaluate(note % '{id: "tiny", family: "mobillama"}') is None
    assert page.evaluate(note % "null") is None


def test_the_choice_has_every_model_with_its_state_and_a_label(page: Page) -> None:
    options = page.evaluate("[...document.querySelectorAll('#model-select option')].map(o => [o.text, o.disabled])")
    assert options == [
        ["tiny", False],
        ["vtimellm-7b (loading)", False],
        ["mobillama-05b-chat", False],
        ["video-chatgpt-7b", False],
        ["video-llava-7b (broken)", True],
    ]
    assert page.evaluate("document.querySelector('#model-select').value") == "tiny"
    assert (
        page.evaluate("document.querySelector('#model-select').labels[0].textContent") == "Model of new conversations"
    )
    assert not page.evaluate("document.querySelector('#model').checkVisibility()")


def test_the_state_of_a_model_that_is_loaded_meanwhile_is_shown(page: Page) -> None:
    page.evaluate("window.served[1].state = 'ready'")
    page.wait_for("document.querySelector('#model-select').options[1].text === 'vtimellm-7b'")


def test_a_new_session_uses_the_chosen_model_and_shows_it(page: Page, drawn: Path) -> None:
    choose(page, "video-chatgpt-7b")
    assert page.evaluate("document.querySelector('#start .model-note').hidden")
    page.choose("#file", drawn)
    page.wait_for(IS_READY)
    assert page.text("#answerer") == "Model video-chatgpt-7b"
    named = page.evaluate("window.named")
    assert ["/v1/sessions", "video-chatgpt-7b"] in named
    assert ["/v1/videos/vid_", "video-chatgpt-7b"] in named
    assert {model for _, model in named} == {"video-chatgpt-7b"}
    assert page.evaluate("document.querySelectorAll('.frames li').length") == 8
    assert not page.evaluate("document.querySelector('.frames img').checkVisibility()"), "they show other frames"
    page.wait_for("document.querySelector('.sidebar .about').textContent.includes('tiny')")  # as the service says
    assert page.complaints == []


def test_the_frames_of_a_model_that_is_not_ready_are_shown_with_its_first_answer(page: Page, drawn: Path) -> None:
    choose(page, "vtimellm-7b")
    page.choose("#file", drawn)
    page.wait_for("location.hash && !document.querySelector('.preparing').checkVisibility()")
    assert not page.evaluate("document.querySelector('.frames').checkVisibility()")
    ask(page, "What happens?")
    page.wait_for(HAS_ENDED)
    assert page.evaluate("document.querySelectorAll('.frames li').length") == 8
    page.click(".frames li:nth-child(5) button")
    page.wait_for("document.querySelector('.clip video').currentTime > 0.5")
    assert page.complaints == []


def test_the_choice_survives_a_reload_unless_the_model_is_broken_then(page: Page) -> None:
    choose(page, "vtimellm-7b")
    page.reload()
    page.wait_for("document.querySelector('#model-select').value === 'vtimellm-7b'")
    page.evaluate("localStorage.setItem('reeltalk:model', '\"video-llava-7b\"')")
    page.reload()
    page.wait_for("document.querySelector('#model-select').value === 'tiny'")


def test_with_a_text_model_a_conversation_needs_no_video(page: Page) -> None:
    choose(page, "mobillama-05b-chat")
    assert not page.evaluate("document.querySelector('#drop').checkVisibility()")
    assert not page.evaluate("document.querySelector('.samples').checkVisibility()")
    page.click("#text-start")
    page.wait_for("location.hash && document.querySelector('#question').checkVisibility()")
    page.wait_for("document.querySelector('#answerer').textContent === 'Model mobillama-05b-chat'")
    assert page.evaluate("window.named") == [["/v1/sessions", "mobillama-05b-chat"]]
    assert not page.evaluate("document.querySelector('#clips').checkVisibility()")
    assert not page.evaluate("document.querySelector('.suggestion').checkVisibility()")
    assert page.evaluate("document.querySelector('#question').placeholder") == "Ask …"
    widths = "[document.querySelector('.conversation').offsetWidth, document.querySelector('#talk').offsetWidth]"
    conversation, view = page.evaluate(widths)
    assert conversation > 0.9 * view
    assert page.complaints == []


def test_a_clip_is_refused_while_a_text_model_is_chosen(page: Page, drawn: Path) -> None:
    choose(page, "mobillama-05b-chat")
    page.choose("#file", drawn)
    page.wait_for("document.querySelector('#start-problem').checkVisibility()")
    assert "mobillama-05b-chat cannot see videos. Choose another model." in page.text("#start-problem")


@pytest.mark.parametrize(("width", "height"), [(390, 844), (320, 568)])
def test_the_choice_fits_on_a_phone(page: Page, width: int, height: int) -> None:
    phone(page, width, height)
    choose(page, "mobillama-05b-chat")
    assert page.evaluate("document.querySelector('#model-select').checkVisibility()")
    page.click("#text-start")
    page.wait_for("document.querySelector('#question').checkVisibility()")
    size = "[document.documentElement.scrollWidth, document.documentElement.scrollHeight]"
    assert page.evaluate(size) == [width, height]
    assert page.evaluate("document.querySelector('#composer').getBoundingClientRect().bottom") <= height
    assert page.evaluate("document.querySelector('.conversation').offsetHeight") > 0.7 * height


def test_a_moment_shows_its_times_and_moves_the_player(page: Page) -> None:
    page.click("[data-sample='arrival.mp4']")
    page.wait_for(IS_READY)
    text = "🙂 From 17 to 34, it comes."
    page.evaluate(ANSWER_WITH_A_MOMENT)
    ask(page, "When does it come?")
    page.wait_for(HAS_ENDED)
    assert page.evaluate(f"{LAST}.querySelector('.answer').textContent") == text
    assert page.text(".moment") == "From 17 to 34"
    assert page.evaluate("getComputedStyle(document.querySelector('.moment'), '::after').content") == '"0:01–0:02"'
    assert page.evaluate("document.querySelector('.moment').ariaLabel") == "From 17 to 34: 0:01–0:02"
    page.click(".moment")
    page.wait_for("Math.abs(document.querySelector('.clip video').currentTime - 1.2) < 0.05")


def test_with_a_time_axis_only_the_moments_of_the_service_are_buttons(page: Page) -> None:
    found = page.evaluate("""import('/static/turn.js').then(({createTurn}) => {
        const turn = createTurn('When?', {clip: {hasMoment: () => true}});
        turn.finish({moments: []}, 'At 2.6 seconds, and not from 34 to 17.');
        return [turn.element.querySelector('.answer').textContent, turn.element.querySelectorAll('.moment').length];
    })""")
    assert found == ["At 2.6 seconds, and not from 34 to 17.", 0]


def test_an_answer_without_a_clip_has_no_buttons(page: Page) -> None:
    found = page.evaluate("""import('/static/turn.js').then(({createTurn}) => {
        const turn = createTurn('When?', {clip: null});
        turn.finish({moments: null}, 'At 2.6 seconds.');
        return [turn.element.querySelector('.answer').textContent, turn.element.querySelectorAll('.moment').length];
    })""")
    assert found == ["At 2.6 seconds.", 0]

"""The chat page in a real browser: upload, ask, stream, stop, come back, and what it says when something is wrong."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.clips import text_file
from tests.e2e.browser import NAMES, Browser, Page, find_browser, running_browser
from tests.e2e.wire import wire_to
from tests.running import RunningService

IS_READY = "document.querySelector('.frames')?.checkVisibility()"
LAST = "[...document.querySelectorAll('.turn')].at(-1)"
IS_ANSWERING = f"{LAST}?.querySelector('.answer[aria-busy]')?.textContent.length > 10"
HAS_ENDED = f"{LAST}?.querySelector('.figures')?.checkVisibility()"


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    path = find_browser()
    if path is None:
        pytest.skip(f"no Chromium on PATH (looked for {', '.join(NAMES)})")
    with running_browser(path, tmp_path_factory.mktemp("profile")) as browser:
        yield browser


@pytest.fixture
def page(browser: Browser, service: RunningService) -> Iterator[Page]:
    with browser.page(f"{service.url}/") as page:
        yield page


@pytest.fixture
def long_page(browser: Browser, talkative: RunningService) -> Iterator[Page]:
    """The page of a service whose answers are long."""
    with browser.page(f"{talkative.url}/") as page:
        yield page


def ask(page: Page, question: str) -> None:
    """Ask the way people do: click into the field, type, press Enter."""
    page.click("#question")
    page.type(question)
    page.press_enter()


def history(page: Page, service: RunningService) -> list[str]:
    """What the service has of the session whose address the page shows."""
    session_id = page.evaluate("location.hash.slice(1)")
    return [m["content"] for m in service.client.get(f"/v1/sessions/{session_id}/messages").json()["data"]]


def in_mid_answer(page: Page, act: Callable[[], object]) -> None:
    """Ask and act while the answer streams. An answer that ended before that proves nothing: ask again."""
    for attempt in range(8):
        turns = page.evaluate("document.querySelectorAll('.turn').length")
        ask(page, f"Question {attempt}: what do you see?")
        page.wait_for(f"document.querySelectorAll('.turn').length > {turns} && ({IS_ANSWERING} || {HAS_ENDED})")
        if act():
            return
        page.wait_for(HAS_ENDED)
    pytest.fail("every answer ended before anything could be done about it")


def test_a_chosen_clip_is_shown_and_talked_about(page: Page, service: RunningService, yoga: Path) -> None:
    page.choose("#file", yoga)
    page.wait_for(IS_READY)
    assert page.text(".clip h2") == "yoga.mp4"
    assert page.text(".facts") == "568 × 320 · 0:10 · 30 fps · h264 · 776 kB"
    times = page.evaluate("[...document.querySelectorAll('.frames time')].map(time => time.textContent)")
    assert times == ["0:00.6", "0:01.8", "0:03.1", "0:04.3", "0:05.6", "0:06.8", "0:08.0", "0:09.3"]
    page.wait_for("[...document.querySelectorAll('.frames img')].every(image => image.naturalWidth > 0)")
    page.wait_for("document.querySelector('video').readyState >= 2")

    ask(page, "What happens?")
    page.wait_for(HAS_ENDED)
    ask(page, "And then?")
    page.wait_for(f"document.querySelectorAll('.turn').length === 2 && {HAS_ENDED}")

    seen = page.evaluate("[...document.querySelectorAll('.asked, .answer')].map(words => words.textContent)")
    assert seen == history(page, service)
    assert seen[::2] == ["What happens?", "And then?"]
    assert "8 frames" in page.text(".figures")
    assert page.complaints == []  # a blocked style or script would be among them


def test_a_frame_s_time_moves_the_player(page: Page, yoga: Path) -> None:
    page.choose("#file", yoga)
    page.wait_for(IS_READY)
    page.click(".frames li:nth-child(5) button")
    page.wait_for("Math.abs(document.querySelector('video').currentTime - 5.6) < 0.05")
    assert page.text(".frames [aria-current]") == "0:05.6"


def test_the_sample_needs_no_file_of_one_s_own(page: Page) -> None:
    page.click("[data-sample='shapes.mp4']")
    page.wait_for(IS_READY)
    assert page.text(".clip h2") == "shapes.mp4"
    page.click(".suggestion")
    page.wait_for(HAS_ENDED)


def test_a_question_may_be_asked_before_the_upload_is_through(page: Page, service: RunningService, yoga: Path) -> None:
    slow = {"offline": False, "latency": 0, "downloadThroughput": -1, "uploadThroughput": 400_000}
    page.call("Network.enable")
    page.call("Network.emulateNetworkConditions", **slow)
    page.choose("#file", yoga)
    page.wait_for("document.querySelector('.amount').textContent.includes('of 776 kB')")
    ask(page, "What will it be?")
    assert page.wait_for(f"{LAST}.querySelector('.state').textContent") == "Waiting for the upload …"
    page.wait_for(HAS_ENDED)
    assert history(page, service)[0] == "What will it be?"


def test_an_answer_is_stopped_and_what_it_said_is_kept(long_page: Page, talkative: RunningService, drawn: Path) -> None:
    long_page.choose("#file", drawn)
    long_page.wait_for(IS_READY)

    def stop() -> bool:
        long_page.evaluate("document.querySelector('#stop').click()")  # a mouse would have to be quicker than the model
        long_page.wait_for(HAS_ENDED)
        return bool(long_page.evaluate(f"{LAST}.querySelector('.figures').textContent.startsWith('stopped')"))

    in_mid_answer(long_page, stop)
    assert long_page.evaluate(f"{LAST}.querySelector('.answer').textContent") == history(long_page, talkative)[-1]
    assert long_page.evaluate("document.querySelector('#send').checkVisibility()")


def test_escape_stops_an_answer(long_page: Page, drawn: Path) -> None:
    long_page.choose("#file", drawn)
    long_page.wait_for(IS_READY)

    def stop() -> bool:
        long_page.call("Input.dispatchKeyEvent", type="keyDown", key="Escape", code="Escape", windowsVirtualKeyCode=27)
        long_page.wait_for(HAS_ENDED)
        return bool(long_page.evaluate(f"{LAST}.querySelector('.figures').textContent.startsWith('stopped')"))

    in_mid_answer(long_page, stop)


def test_settings_are_sent_and_survive_a_reload(page: Page, service: RunningService, drawn: Path) -> None:
    page.choose("#file", drawn)
    page.wait_for(IS_READY)
    page.click("#settings summary")
    page.click("#settings [name=max_tokens]")
    page.type("3")
    page.reload()
    page.wait_for(IS_READY)
    assert page.evaluate("document.querySelector('[name=max_tokens]').value") == "3"
    ask(page, "What do you see?")
    page.wait_for(HAS_ENDED)
    session_id = page.evaluate("location.hash.slice(1)")
    answer = service.client.get(f"/v1/sessions/{session_id}/messages").json()["data"][-1]
    assert answer["usage"]["completion_tokens"] == 3
    assert answer["finish_reason"] == "length"


def test_conversations_are_listed_gone_to_and_deleted(page: Page, service: RunningService, drawn: Path) -> None:
    page.choose("#file", drawn)
    page.wait_for(IS_READY)
    ask(page, "Which one is this?")
    page.wait_for(HAS_ENDED)
    first = page.evaluate("location.hash")
    page.click(f".sidebar li:has(a[href='{first}']) button")
    page.wait_for(f"location.hash !== '{first}' && {IS_READY} && !document.querySelector('.turn')")
    second = page.evaluate("location.hash")
    page.wait_for(f"document.querySelector('.sidebar [aria-current]')?.hash === '{second}'")

    page.reload()
    page.click(f".sidebar a[href='{first}']")
    page.wait_for("document.querySelector('.asked')?.textContent === 'Which one is this?'")
    assert page.evaluate("document.querySelector('.sidebar [aria-current]').hash") == first

    page.evaluate("window.confirm = () => true")
    page.click(f".sidebar li:has(a[href='{first}']) button:last-child")
    page.wait_for(f"!document.querySelector(\".sidebar a[href='{first}']\")")
    assert page.evaluate("document.querySelector('#start').checkVisibility()")
    assert service.client.get(f"/v1/sessions/{first[1:]}").status_code == 404
    assert service.client.get(f"/v1/sessions/{second[1:]}").status_code == 200


def test_a_reload_in_mid_answer_goes_on_with_it(long_page: Page, talkative: RunningService, drawn: Path) -> None:
    long_page.choose("#file", drawn)
    long_page.wait_for(IS_READY)

    def reload() -> bool:
        long_page.reload()
        long_page.wait_for(f"{IS_ANSWERING} || {HAS_ENDED}")
        return bool(long_page.evaluate(IS_ANSWERING))

    in_mid_answer(long_page, reload)
    long_page.wait_for(HAS_ENDED)
    seen = long_page.evaluate("[...document.querySelectorAll('.asked, .answer')].map(words => words.textContent)")
    assert seen == history(long_page, talkative)
    long_page.wait_for("document.querySelector('video').readyState >= 2")  # the file now comes from the service


def test_a_lost_connection_costs_no_word_of_the_answer(
    browser: Browser, talkative: RunningService, drawn: Path
) -> None:
    with wire_to(talkative.url) as wire, browser.page(f"{wire.url}/") as page:
        page.choose("#file", drawn)
        page.wait_for(IS_READY)

        def cut() -> bool:
            wire.cut()
            page.wait_for(f"{LAST}.querySelector('.state').textContent.startsWith('Connection lost') || {HAS_ENDED}")
            return not page.evaluate(HAS_ENDED)

        in_mid_answer(page, cut)
        page.wait_for(HAS_ENDED)
        assert page.evaluate(f"{LAST}.querySelector('.answer').textContent") == history(page, talkative)[-1]


def test_what_is_not_a_video_is_refused_in_plain_words(page: Page, tmp_path: Path) -> None:
    page.choose("#file", text_file(tmp_path / "words.mp4"))
    said = page.wait_for("!document.querySelector('#start-problem').hidden && document.body.innerText")
    assert "This is not a video that can be opened." in said
    assert page.evaluate("document.querySelector('#drop').checkVisibility()")


def test_a_busy_session_keeps_the_typed_question(page: Page, service: RunningService, session: str) -> None:
    page.open(f"{service.url}/#{session}")
    page.wait_for(IS_READY)
    with service.stream(session, "Tell me a long story.", max_tokens=1500, ignore_eos=True):
        ask(page, "Is it my turn?")
        page.wait_for("!document.querySelector('#refusal').hidden")
    assert "One question at a time." in page.text("#refusal")
    assert page.evaluate("document.querySelector('#question').value") == "Is it my turn?"
    assert page.evaluate("document.querySelectorAll('.turn').length") == 0


def test_a_session_that_is_gone_leads_back_to_the_start(page: Page, service: RunningService) -> None:
    page.open(f"{service.url}/#ses_{'0' * 32}")
    page.wait_for("!document.querySelector('#start-problem').hidden")
    assert "There is no session with this id." in page.text("#start-problem")
    assert page.evaluate("location.hash") == ""


def test_nothing_sticks_out_on_a_phone(page: Page, drawn: Path) -> None:
    page.call("Emulation.setDeviceMetricsOverride", width=390, height=844, deviceScaleFactor=2, mobile=True)
    page.choose("#file", drawn)
    page.wait_for(IS_READY)
    ask(page, "What a long word is " + "a" * 200 + "?")
    page.wait_for(HAS_ENDED)
    width, bottom = page.evaluate(
        "[document.documentElement.scrollWidth, document.querySelector('#composer').getBoundingClientRect().bottom]"
    )
    assert width == 390
    assert bottom <= 844


def test_events_are_read_however_the_stream_is_cut(page: Page) -> None:
    stream = (
        ': hello\n\nid: 7\nevent: delta\ndata: {"text":\ndata: "häh"}\n\nevent: error\r\ndata: {}\r\n\r\ndata: 1\r\r\n'
    )
    events = [
        {"id": 7, "name": "delta", "data": {"text": "häh"}},
        {"id": None, "name": "error", "data": {}},
        {"id": None, "name": "message", "data": 1},
    ]
    for size in (1, 2, 3, 5, 1000):
        pieces = [stream[start : start + size] for start in range(0, len(stream), size)]
        read = page.evaluate(
            "import('/static/event-stream.js').then(({EventParser}) => "
            f"(parser => {json.dumps(pieces)}.flatMap(piece => parser.push(piece)))(new EventParser()))"
        )
        assert read == events


def test_moments_in_an_answer_are_found(page: Page) -> None:
    found = page.evaluate(
        "import('/static/wording.js').then(({moments}) => "
        "moments('At 0:02 and 1:02:03.5, after 4.5 seconds, for 12 s; not 16:9, 3 shapes or 12').map(m => m[2]))"
    )
    assert found == [2, 3723.5, 4.5, 12]

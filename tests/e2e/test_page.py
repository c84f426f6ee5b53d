"""The chat page in a real browser: upload, ask, stream, stop, resume, and show errors."""

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.clips import h264_mp4, text_file
from tests.e2e.browser import Browser, Page
from tests.e2e.wire import wire_to
from tests.running import RunningService

IS_READY = "location.hash && document.querySelector('.frames')?.checkVisibility()"
LAST = "[...document.querySelectorAll('.turn')].at(-1)"
IS_ANSWERING = f"{LAST}?.querySelector('.answer[aria-busy]')?.textContent.length > 10"
HAS_ENDED = f"{LAST}?.querySelector('.figures')?.checkVisibility()"

# Makes every video appear to be in preparation.
ALWAYS_PREPARING = """{
  const real = window.fetch;
  window.fetch = async (url, options) => {
    const reply = await real(url, options);
    if (!/videos\\/vid_[0-9a-f]+$/u.test(url)) return reply;
    return Response.json({ ...await reply.json(), status: "processing" });
  };
}"""


@pytest.fixture
def page(browser: Browser, service: RunningService) -> Iterator[Page]:
    with browser.page(f"{service.url}/") as page:
        yield page


@pytest.fixture
def long_page(browser: Browser, talkative: RunningService) -> Iterator[Page]:
    """The page of a service with long answers."""
    with browser.page(f"{talkative.url}/") as page:
        yield page


def ask(page: Page, question: str) -> None:
    """Ask like a user: click into the field, type, and press Enter."""
    page.click("#question")
    page.type(question)
    page.press("Enter")


def history(page: Page, service: RunningService) -> list[str]:
    """The messages in the session whose address the page shows."""
    session_id = page.evaluate("location.hash.slice(1)")
    return [m["content"] for m in service.client.get(f"/v1/sessions/{session_id}/messages").json()["data"]]


def in_mid_answer(page: Page, act: Callable[[], object]) -> None:
    """Ask and act while the answer is streamed; if the answer ends too early, ask again."""
    for attempt in range(8):
        turns = page.evaluate("document.querySelectorAll('.turn').length")
        ask(page, f"Question {attempt}: what do you see?")
        page.wait_for(f"document.querySelectorAll('.turn').length > {turns} && ({IS_ANSWERING} || {HAS_ENDED})")
        if act():
            return
        page.wait_for(HAS_ENDED)
    pytest.fail("every answer ended too early")


def test_a_chosen_clip_is_shown_and_asked_about(page: Page, service: RunningService, yoga: Path) -> None:
    page.choose("#file", yoga)
    page.wait_for(IS_READY)
    assert page.text(".clip h2") == "yoga.mp4"
    assert page.text(".facts") == "568 × 320 · 0:10 · 30 fps · h264 · 776 kB"
    times = page.evaluate("[...document.querySelectorAll('.frames time')].map(time => time.textContent)")
    assert times == ["0:00.6", "0:01.8", "0:03.1", "0:04.3", "0:05.6", "0:06.8", "0:08.0", "0:09.3"]
    page.wait_for("[...document.querySelectorAll('.frames img')].every(image => image.naturalWidth > 0)")
    page.wait_for("document.querySelector('.clip video').readyState >= 2")

    ask(page, "What happens?")
    page.wait_for(HAS_ENDED)
    ask(page, "And then?")
    page.wait_for(f"document.querySelectorAll('.turn').length === 2 && {HAS_ENDED}")

    seen = page.evaluate("[...document.querySelectorAll('.asked, .answer')].map(words => words.textContent)")
    assert seen == history(page, service)
    assert seen[::2] == ["What happens?", "And then?"]
    assert "8\u00a0frames" in page.text(".figures")
    assert page.complaints == []  # would include blocked styles and scripts


def test_a_frame_s_time_moves_the_player(page: Page, yoga: Path) -> None:
    page.choose("#file", yoga)
    page.wait_for(IS_READY)
    page.click(".frames li:nth-child(5) button")
    page.wait_for("Math.abs(document.querySelector('.clip video').currentTime - 5.6) < 0.05")
    assert page.text(".frames [aria-current]") == "0:05.6"


def test_a_sample_can_be_chosen(page: Page) -> None:
    page.click("[data-sample='shapes.mp4']")
    page.wait_for(IS_READY)
    assert page.text(".clip h2") == "shapes.mp4"
    page.click(".suggestion")
    page.wait_for(HAS_ENDED)


def test_a_question_can_be_asked_before_the_upload_is_complete(page: Page, service: RunningService, yoga: Path) -> None:
    slow = {"offline": False, "latency": 0, "downloadThroughput": -1, "uploadThroughput": 400_000}
    page.call("Network.enable")
    page.call("Network.emulateNetworkConditions", **slow)
    page.choose("#file", yoga)
    page.wait_for("document.querySelector('.amount').textContent.includes('of 776 kB')")
    ask(page, "What will it be?")
    assert page.wait_for(f"{LAST}.querySelector('.state').textContent") == "Waiting for the upload …"
    page.wait_for(HAS_ENDED)
    assert history(page, service)[0] == "What will it be?"


def test_a_stopped_answer_keeps_its_text(long_page: Page, talkative: RunningService, drawn: Path) -> None:
    long_page.choose("#file", drawn)
    long_page.wait_for(IS_READY)

    def stop() -> bool:
        long_page.evaluate("document.querySelector('#stop').click()")  # a mouse click could come too late
        long_page.wait_for(HAS_ENDED)
        return bool(long_page.evaluate(f"{LAST}.querySelector('.figures').textContent.startsWith('stopped')"))

    in_mid_answer(long_page, stop)
    assert long_page.evaluate(f"{LAST}.querySelector('.answer').textContent") == history(long_page, talkative)[-1]
    assert long_page.evaluate("document.querySelector('#send').checkVisibility()")


def test_escape_stops_an_answer(long_page: Page, drawn: Path) -> None:
    long_page.choose("#file", drawn)
    long_page.wait_for(IS_READY)

    def stop() -> bool:
        long_page.press("Escape")
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


def test_a_conversation_gets_its_name_while_its_clip_is_being_prepared(page: Page, drawn: Path) -> None:
    page.evaluate(ALWAYS_PREPARING)
    page.choose("#file", drawn)
    page.wait_for(f"{IS_READY} && document.querySelector('.sidebar [aria-current] .name')?.textContent === 'drawn.mp4'")
    ask(page, "What is in the works?")
    page.wait_for("document.querySelector('.sidebar [aria-current] .name').textContent === 'What is in the works?'")
    page.wait_for(HAS_ENDED)
    assert page.complaints == []


def test_conversations_are_listed_opened_and_deleted(page: Page, service: RunningService, drawn: Path) -> None:
    page.choose("#file", drawn)
    page.wait_for(IS_READY)
    ask(page, "Which one is this?")
    page.wait_for(HAS_ENDED)
    first = page.evaluate("location.hash")
    page.point_at(f".sidebar a[href='{first}']")  # shows the buttons
    page.click(f".sidebar li:has(a[href='{first}']) button")
    page.wait_for(f"location.hash !== '{first}' && {IS_READY} && !document.querySelector('.turn')")
    second = page.evaluate("location.hash")
    page.wait_for(f"document.querySelector('.sidebar [aria-current]')?.hash === '{second}'")

    page.reload()
    page.wait_for(f"document.querySelector(\".sidebar a[href='{first}'] .name\")?.textContent === 'Which one is this?'")
    page.click(f".sidebar a[href='{first}']")
    page.wait_for("document.querySelector('.asked')?.textContent === 'Which one is this?'")
    assert page.evaluate("document.querySelector('.sidebar [aria-current]').hash") == first

    page.evaluate("window.confirm = () => true")
    page.point_at(f".sidebar a[href='{first}']")
    page.click(f".sidebar li:has(a[href='{first}']) button:last-child")
    page.wait_for(f"!document.querySelector(\".sidebar a[href='{first}']\")")
    assert page.evaluate("document.querySelector('#start').checkVisibility()")
    assert service.client.get(f"/v1/sessions/{first[1:]}").status_code == 404
    assert service.client.get(f"/v1/sessions/{second[1:]}").status_code == 200


def test_a_reload_during_an_answer_resumes_it(long_page: Page, talkative: RunningService, drawn: Path) -> None:
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
    long_page.wait_for("document.querySelector('.clip video').readyState >= 2")  # the file comes from the service now


def test_a_running_answer_is_shown_in_another_browser(browser: Browser, talkative: RunningService, drawn: Path) -> None:
    video = talkative.upload(drawn)
    session_id = talkative.open_session(video["id"])
    with talkative.stream(session_id, "Tell me all.", max_tokens=1000) as events:
        next(events)
        with browser.page(f"{talkative.url}/#{session_id}") as page:
            page.wait_for(f"{IS_ANSWERING} && document.querySelector('.asked').textContent === 'Tell me all.'")
            page.click("#stop")
            page.wait_for(HAS_ENDED)
            assert list(events)[-1].data["finish_reason"] == "abort"


def test_no_text_is_lost_with_a_connection(browser: Browser, talkative: RunningService, drawn: Path) -> None:
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


def test_a_file_that_is_not_a_video_is_refused_with_a_message(page: Page, tmp_path: Path) -> None:
    page.choose("#file", text_file(tmp_path / "words.mp4"))
    shown = page.wait_for("!document.querySelector('#start-problem').hidden && document.body.innerText")
    assert "This file is not a supported video." in shown
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


def test_the_address_of_a_deleted_session_leads_to_the_start(page: Page, service: RunningService) -> None:
    page.open(f"{service.url}/#ses_{'0' * 32}")
    page.wait_for("!document.querySelector('#start-problem').hidden")
    assert "There is no session with this id." in page.text("#start-problem")
    assert page.evaluate("location.hash") == ""


def test_a_clip_can_be_dropped_anywhere(page: Page) -> None:
    page.evaluate("""(async () => {
        const clip = await (await fetch('/static/samples/arrival.mp4')).blob();
        const dataTransfer = new DataTransfer();
        dataTransfer.items.add(new File([clip], 'dropped.mp4', {type: 'video/mp4'}));
        const drop = (kind) => document.querySelector('.bar').dispatchEvent(
            new DragEvent(kind, {bubbles: true, cancelable: true, dataTransfer}));
        drop('dragenter');
        window.isMarked = document.body.hasAttribute('data-dropping');
        drop('drop');
    })()""")
    page.wait_for(IS_READY)
    assert page.text(".clip h2") in {"dropped.mp4", "arrival.mp4"}  # the service keeps the name of the first upload
    assert page.evaluate("isMarked && !document.body.hasAttribute('data-dropping')")


def test_upload_decoding_and_encoding_are_shown_in_order(page: Page, tmp_path: Path) -> None:
    page.evaluate("""window.steps = [];
        new MutationObserver((changes) => changes.forEach((change) => change.addedNodes.forEach((node) => {
            if (change.target.className === 'step' && steps.at(-1) !== node.data) steps.push(node.data);
            if (node.className === 'clip') steps.push(node.querySelector('.step').textContent);
        }))).observe(document.body, {childList: true, subtree: true})""")
    page.choose("#file", h264_mp4(tmp_path / "unseen_before.mp4", frames=41))
    page.wait_for(IS_READY)
    steps = page.evaluate("steps.filter(Boolean)")
    assert steps == ["Uploading", "Checking the file", "Reading frames", "Encoding frames"]
    assert not page.evaluate("document.querySelector('.preparing').checkVisibility()")


def test_a_time_in_an_answer_moves_the_player(page: Page) -> None:
    page.click("[data-sample='arrival.mp4']")
    page.wait_for(IS_READY)
    ask(page, "What happens in the video?")
    page.wait_for(HAS_ENDED)
    named = page.text(".moment")
    page.click(".moment")
    page.wait_for(f"Math.abs(document.querySelector('.clip video').currentTime - {float(named.split()[0])}) < 0.05")
    page.wait_for("document.querySelector('#announcer').lastElementChild.textContent.startsWith('Player at 0:0')")


def test_a_time_after_the_end_of_the_clip_is_not_a_button(page: Page) -> None:
    found = page.evaluate("""import('/static/turn.js').then(({createTurn}) => {
        const turn = createTurn('When?', {clip: {hasMoment: (seconds) => seconds <= 6}});
        turn.finish({}, 'At 2.6 seconds, at 0:06, not for 59 s.');
        return [turn.element.querySelector('.answer').textContent,
            ...[...turn.element.querySelectorAll('.moment')].map((button) => button.textContent)];
    })""")
    assert found == ["At 2.6 seconds, at 0:06, not for 59 s.", "2.6 seconds", "0:06"]


def test_an_answer_continues_while_another_view_is_shown(
    long_page: Page, talkative: RunningService, drawn: Path
) -> None:
    long_page.choose("#file", drawn)
    long_page.wait_for(IS_READY)
    address = long_page.evaluate("location.hash")

    def go_elsewhere() -> bool:
        is_answering = bool(long_page.evaluate(IS_ANSWERING))
        long_page.click("#new-video")
        time.sleep(2.5)  # the service stops an answer without readers after a second
        long_page.click(f".sidebar a[href='{address}']")
        long_page.wait_for(f"{IS_ANSWERING} || {HAS_ENDED}")
        return is_answering

    in_mid_answer(long_page, go_elsewhere)
    long_page.wait_for(HAS_ENDED)
    assert long_page.evaluate(f"{LAST}.querySelector('.figures').textContent").startswith("cut\u00a0at")
    seen = long_page.evaluate("[...document.querySelectorAll('.asked, .answer')].map(words => words.textContent)")
    assert seen == history(long_page, talkative)


def test_an_answer_is_announced_in_sentences(page: Page) -> None:
    text = "It comes. Then a large green star stays still for the whole clip, and a triangle appears! " * 4 + "The end"
    shown = page.evaluate(f"""import('/static/announcer.js').then(async ({{createReading}}) => {{
        const region = document.querySelector('#announcer');
        const shown = [];
        const watch = new MutationObserver((changes) => changes.forEach((change) => change.addedNodes.forEach(
            (node) => shown.push(node.textContent))));
        watch.observe(region, {{childList: true}});
        const reading = createReading();
        for (const letter of {json.dumps(text)}) reading.append(letter);
        reading.end();
        await new Promise(setTimeout);
        return shown;
    }})""")
    assert "".join(shown) == "Answer: " + text
    assert len(shown) == 5
    assert page.evaluate("document.querySelector('#announcer').getAttribute('role')") == "status"


FOCUSED = "document.activeElement"
RING = f"""(() => {{
    if ({FOCUSED} instanceof HTMLVideoElement) return true; // the browser's controls in it show their own
    const ring = {FOCUSED}.closest('.field, .drop') ?? {FOCUSED};
    const style = getComputedStyle(ring);
    return {FOCUSED}.checkVisibility() && (style.outlineStyle !== 'none' || style.boxShadow !== 'none');
}})()"""


def tab_to(page: Page, selector: str) -> None:
    """Press Tab until an element has the focus; checks that every focused element shows it."""
    for _ in range(60):
        page.press("Tab")
        if page.evaluate(f"{FOCUSED} === document.body"):
            continue  # the focus is on the browser's controls
        assert page.evaluate(RING), page.evaluate(f"{FOCUSED}.outerHTML")
        if page.evaluate(f"{FOCUSED}.matches({json.dumps(selector)})"):
            return
    pytest.fail(f"Tab did not reach {selector}")


def test_the_page_can_be_used_with_the_keyboard(long_page: Page) -> None:
    page = long_page
    page.press("Tab")
    assert page.evaluate(f"{FOCUSED}.id") == "skip"
    page.press("Enter")
    assert page.evaluate(f"{FOCUSED}.id") == "file"
    tab_to(page, "[data-sample='arrival.mp4']")
    page.press("Enter")
    page.wait_for(f"{IS_READY} && {FOCUSED}.id === 'question'")
    page.type("What happens?")
    page.press("Enter")
    page.wait_for(f"{IS_ANSWERING} || {HAS_ENDED}")
    page.press("Escape")
    page.wait_for(HAS_ENDED)
    assert page.evaluate(f"{FOCUSED}.id") == "question"
    tab_to(page, "#settings summary")
    page.press("Enter")
    tab_to(page, "[name=temperature]")
    tab_to(page, ".sidebar [aria-current]")
    tab_to(page, ".sidebar li button")
    tab_to(page, ".frames li:nth-child(4) button")
    page.press("Enter")
    page.wait_for("document.querySelector('.clip video').currentTime > 1")


def test_a_conversation_deleted_elsewhere_shows_an_error_and_keeps_the_question(
    page: Page, service: RunningService, session: str
) -> None:
    page.open(f"{service.url}/#{session}")
    page.wait_for(IS_READY)
    service.client.delete(f"/v1/sessions/{session}")
    ask(page, "Are you there?")
    page.wait_for("document.querySelector('#refusal').checkVisibility()")
    assert "This does not exist any more." in page.text("#refusal")
    assert page.evaluate("document.querySelector('#question').value") == "Are you there?"
    page.click("#refusal button")
    page.wait_for("document.querySelector('#start').checkVisibility()")
    page.wait_for(f"!document.querySelector(\".sidebar a[href='#{session}']\")")
    assert page.evaluate("location.hash") == ""


def test_a_deleted_file_has_another_message_than_an_unplayable_one(
    page: Page, service: RunningService, tmp_path: Path
) -> None:
    video = service.upload(h264_mp4(tmp_path / "short_lived.mp4", frames=37))
    session = service.open_session(video["id"])
    [kept] = [path for path in service.data_dir.rglob(video["sha256"]) if path.is_file()]
    kept.unlink()
    service.forget_features(video["sha256"])
    page.open(f"{service.url}/#{session}")
    page.wait_for("document.querySelector('.unplayable')?.textContent.includes('no longer stored')")
    ask(page, "What was it?")
    page.wait_for("[...document.querySelectorAll('.problem')].some((problem) => problem.checkVisibility())")
    assert "The video's file has been deleted" in page.evaluate("document.querySelector('.conversation').innerText")


def test_an_unreachable_service_is_reported_with_a_retry(
    browser: Browser, service: RunningService, drawn: Path
) -> None:
    with browser.page(f"{service.url}/") as page:
        page.wait_for("document.querySelector('#model').checkVisibility()")
        page.call("Network.enable")
        network = {"latency": 0, "downloadThroughput": -1, "uploadThroughput": -1}
        page.call("Network.emulateNetworkConditions", offline=True, **network)
        page.choose("#file", drawn)
        page.wait_for("document.querySelector('#start-problem').checkVisibility()")
        assert "The service cannot be reached." in page.text("#start-problem")
        page.call("Network.emulateNetworkConditions", offline=False, **network)
        page.click("#start-problem button")
        page.wait_for(IS_READY)


def phone(page: Page, width: int = 390, height: int = 844) -> None:
    page.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=2, mobile=True)


@pytest.mark.parametrize(("width", "height"), [(390, 844), (320, 568), (844, 390)])
def test_nothing_overflows_on_a_phone(page: Page, drawn: Path, width: int, height: int) -> None:
    phone(page, width, height)
    page.choose("#file", drawn)
    page.wait_for(IS_READY)
    ask(page, "What a long word is " + "a" * 200 + "?")
    page.wait_for(HAS_ENDED)
    size = "[document.documentElement.scrollWidth, document.documentElement.scrollHeight]"
    assert page.evaluate(size) == [width, height]
    assert page.evaluate("document.querySelector('#composer').getBoundingClientRect().bottom") <= height
    page.click("#new-video")
    page.wait_for("document.querySelector('#start').checkVisibility()")
    assert page.evaluate("document.documentElement.scrollWidth") == width


def test_on_a_phone_the_conversations_are_a_drawer(page: Page, service: RunningService, session: str) -> None:
    phone(page)
    page.open(f"{service.url}/#{session}")
    page.wait_for(IS_READY)
    assert not page.evaluate("document.querySelector('#sidebar').checkVisibility()")
    page.click("#sidebar-toggle")
    page.wait_for(f"document.querySelector('#sidebar').contains({FOCUSED})")
    assert page.evaluate("document.querySelector('#talk').inert")
    page.press("Escape")
    page.wait_for("!document.querySelector('#sidebar').checkVisibility()")
    assert page.evaluate(f"{FOCUSED}.id") == "sidebar-toggle"
    assert not page.evaluate("document.querySelector('#talk').inert")


def test_the_preferences_of_the_system_are_followed(page: Page) -> None:
    def seen(**tastes: str) -> list[float]:
        features = [{"name": name.replace("_", "-"), "value": value} for name, value in tastes.items()]
        page.call("Emulation.setEmulatedMedia", features=features)
        # the contrast of text and background, and the luminance of the background
        found: list[float] = page.evaluate("""(() => {
            const light = (colour) => colour.match(/[\\d.]+/g).slice(0, 3).map((part) => part / 255)
                .map((part) => part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4)
                .reduce((sum, part, number) => sum + part * [0.2126, 0.7152, 0.0722][number], 0);
            const paper = light(getComputedStyle(document.body).backgroundColor);
            const soft = light(getComputedStyle(document.querySelector('.lede')).color);
            return [(Math.max(paper, soft) + 0.05) / (Math.min(paper, soft) + 0.05), paper];
        })()""")
        return found

    light_contrast, light_paper = seen(prefers_color_scheme="light")
    dark_contrast, dark_paper = seen(prefers_color_scheme="dark")
    assert light_paper > 0.8
    assert dark_paper < 0.05
    assert min(light_contrast, dark_contrast) >= 4.5  # level AA of WCAG
    progress = "getComputedStyle(document.body.appendChild(document.createElement('progress'))).animationName"
    seen(prefers_reduced_motion="no-preference")
    assert page.evaluate(progress) == "sweep"
    seen(prefers_reduced_motion="reduce")
    assert page.evaluate(progress) == "none"


def test_events_are_parsed_from_pieces_of_any_size(page: Page) -> None:
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

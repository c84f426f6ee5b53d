"""Takes the pictures in docs/screenshots: `python -m tests.e2e.screenshots`, with Chromium on PATH."""

import base64
import tempfile
import time
from pathlib import Path

from tests.clips import text_file
from tests.e2e.browser import Page, find_browser, running_browser
from tests.e2e.test_page import HAS_ENDED, IS_READY, ask
from tests.running import running

TARGET = Path(__file__).parents[2] / "docs" / "screenshots"
QUESTIONS = ("What happens in the video?", "Which way does the blue square go?")


def main() -> None:
    path = find_browser()
    assert path is not None, "Chromium is not on PATH"
    with tempfile.TemporaryDirectory() as folder:
        data, profile = Path(folder, "data"), Path(folder, "profile")
        profile.mkdir()
        with (
            running(data) as service,
            running_browser(path, profile) as browser,
            browser.page(f"{service.url}/") as page,
        ):
            show(page, width=1280, height=800)
            take(page, "start")
            page.choose("input[type=file]", text_file(Path(folder) / "holiday.mp4"))
            page.wait_for("document.querySelector('#start-problem').checkVisibility()")
            take(page, "error")
            page.open(f"{service.url}/")
            talk_before(page)
            page.click("[data-sample='shapes.mp4']")
            page.wait_for(IS_READY)
            for question in QUESTIONS:
                ask(page, question)
                page.wait_for(f"document.querySelectorAll('.turn').length > {QUESTIONS.index(question)} && {HAS_ENDED}")
            take(page, "desktop")
            show(page, width=1280, height=800, scheme="dark")
            take(page, "dark")
            show(page, width=390, height=844)
            take(page, "phone")
            page.click("#new-video")
            take(page, "phone-start")


def talk_before(page: Page) -> None:
    """Create conversations for the sidebar."""
    for clip, question in (("farewell.webm", "What disappears?"), ("arrival.mp4", "When does the triangle appear?")):
        page.click(f"[data-sample='{clip}']")
        page.wait_for(IS_READY)
        ask(page, question)
        page.wait_for(HAS_ENDED)
        page.click("#new-video")


def show(page: Page, *, width: int, height: int, scheme: str = "light") -> None:
    """Set the size of the window and the color scheme."""
    page.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 500)
    page.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])


def take(page: Page, name: str) -> None:
    """Save a screenshot after animations have ended."""
    time.sleep(0.6)
    picture = page.call("Page.captureScreenshot", format="png")["data"]
    (TARGET / f"{name}.png").write_bytes(base64.b64decode(picture))


if __name__ == "__main__":
    main()

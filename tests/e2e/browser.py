"""Controls a headless Chromium over its DevTools pipe, without a driver or packages."""

import contextlib
import fcntl
import itertools
import json
import os
import queue
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

NAMES = ("chromium", "chromium-browser", "google-chrome-stable", "google-chrome")
FLAGS = (
    "--headless=new",
    "--no-sandbox",  # root in a container cannot use the sandbox
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--window-size=1280,800",
    # a mouse and a keyboard, which headless Chromium does not report by default
    "--blink-settings=primaryHoverType=2,availableHoverTypes=2,primaryPointerType=4,availablePointerTypes=4",
    "--remote-debugging-pipe",
)
TIMEOUT = 30.0

# Chromium reads commands from descriptor 3 and writes to 4; this launcher puts the pipes there.
_STARTER = (
    "import os, sys; os.dup2(int(sys.argv[1]), 3); os.dup2(int(sys.argv[2]), 4); os.execv(sys.argv[3], sys.argv[3:])"
)

# The center of an element once it has not moved between two frames and a click would hit it; null until then.
_MIDDLE_AT_REST = """async (selector) => {
  const look = () => {
    const element = document.querySelector(selector);
    element.scrollIntoView({ block: "nearest" });
    const { x, y, width, height } = element.getBoundingClientRect();
    const middle = [x + width / 2, y + height / 2];
    return element.contains(document.elementFromPoint(...middle)) ? middle : null;
  };
  const first = look();
  await new Promise((resolve) => setTimeout(resolve, 60));
  const second = look();
  return first && second && first.join() === second.join() ? second : null;
}"""

# Lets a click reach only this element: a click on another one, after the layout moved, is suppressed and recorded.
_GUARD = """(selector) => {
  const kinds = ["pointerdown", "mousedown", "pointerup", "mouseup", "click"];
  const element = document.querySelector(selector);
  const guard = { missed: false, end: () => kinds.forEach((kind) => removeEventListener(kind, check, true)) };
  function check(event) {
    if (!element.contains(event.target)) guard.missed = true;
    if (guard.missed) { event.preventDefault(); event.stopImmediatePropagation(); }
    else if (event.type === "click") guard.end(); // what it sets off may go elsewhere
  }
  kinds.forEach((kind) => addEventListener(kind, check, true));
  window.clickGuard = guard;
}"""
_MISSED = "(({ clickGuard }) => (clickGuard?.end(), clickGuard?.missed ?? false))(window)"


def find_browser() -> str | None:
    """The path of an installed Chromium; None if there is none."""
    return next((path for name in NAMES if (path := shutil.which(name))), None)


class Browser:
    """A running Chromium. Messages are JSON, separated by zero bytes; a thread dispatches the incoming ones."""

    def __init__(self, commands: BinaryIO, replies: BinaryIO) -> None:
        self._commands = commands
        self._replies = replies
        self._numbers = itertools.count(1)
        self._waiting: dict[int, queue.SimpleQueue[dict[str, Any]]] = {}
        self._pages: dict[str, Page] = {}
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def call(self, method: str, *, session: str | None = None, **params: Any) -> dict[str, Any]:
        """Send one command and wait for its result."""
        number = next(self._numbers)
        message = {"id": number, "method": method, "params": params}
        if session is not None:
            message["sessionId"] = session
        reply = self._waiting[number] = queue.SimpleQueue()
        self._commands.write(json.dumps(message).encode() + b"\0")
        self._commands.flush()
        try:
            answer = reply.get(timeout=TIMEOUT)
        finally:
            del self._waiting[number]
        if "error" in answer:
            raise RuntimeError(f"{method}: {answer['error']['message']}")
        result: dict[str, Any] = answer["result"]
        return result

    @contextmanager
    def page(self, url: str) -> Iterator["Page"]:
        """Open a page with its own storage."""
        context = self.call("Target.createBrowserContext")["browserContextId"]
        target = self.call("Target.createTarget", url="about:blank", browserContextId=context)["targetId"]
        session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        page = self._pages[session] = Page(self, session)
        try:
            for domain in ("Page", "Runtime", "Log", "DOM"):
                page.call(f"{domain}.enable")
            page.open(url)
            yield page
        finally:
            del self._pages[session]
            self.call("Target.disposeBrowserContext", browserContextId=context)

    def join(self) -> None:
        """Wait for the last message after the browser has ended."""
        self._reader.join(TIMEOUT)

    def _read(self) -> None:
        rest = b""
        while chunk := os.read(self._replies.fileno(), 1 << 16):
            *messages, rest = (rest + chunk).split(b"\0")
            for message in map(json.loads, messages):
                if waiting := self._waiting.get(message.get("id", 0)):
                    waiting.put(message)
                elif page := self._pages.get(message.get("sessionId", "")):
                    page.record(message)


class Page:
    """One page; `complaints` lists its script errors, blocked resources and error messages, in order."""

    def __init__(self, browser: Browser, session: str) -> None:
        self._browser = browser
        self._session = session
        self.complaints: list[str] = []

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        return self._browser.call(method, session=self._session, **params)

    def open(self, url: str) -> None:
        self.call("Page.navigate", url=url)
        self.wait_for("document.readyState === 'complete'")

    def reload(self) -> None:
        """Reload the page."""
        self.evaluate("window.isOld = true")
        self.call("Page.reload")
        self.wait_for("!window.isOld && document.readyState === 'complete'")

    def evaluate(self, expression: str) -> Any:
        """Evaluate a JavaScript expression; awaits promises."""
        reply = self.call("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in reply:
            raise RuntimeError(json.dumps(reply["exceptionDetails"])[:2000])
        return reply["result"].get("value")

    def wait_for(self, expression: str, *, timeout: float = TIMEOUT) -> Any:
        """Wait until an expression is true; returns its value."""
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            with contextlib.suppress(RuntimeError):  # during navigation there is no document
                if value := self.evaluate(expression):
                    return value
            time.sleep(0.02)
        seen = self.evaluate("document.body.innerText")
        raise AssertionError(f"never true: {expression}\ncomplaints: {self.complaints}\nthe page reads:\n{seen}")

    def text(self, selector: str) -> str:
        """The text of the element."""
        text: str = self.evaluate(f"document.querySelector({json.dumps(selector)}).textContent")
        return text

    def choose(self, selector: str, path: Path) -> None:
        """Choose a file in a file input."""
        field = self.call("Runtime.evaluate", expression=f"document.querySelector({json.dumps(selector)})")
        self.call("DOM.setFileInputFiles", files=[str(path)], objectId=field["result"]["objectId"])

    def click(self, selector: str) -> None:
        """Move the mouse to the center of a visible element and click."""
        deadline = time.monotonic() + TIMEOUT
        while time.monotonic() < deadline:
            x, y = self.point_at(selector)
            self.evaluate(f"({_GUARD})({json.dumps(selector)})")
            for kind in ("mousePressed", "mouseReleased"):
                self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)
            if not self.evaluate(_MISSED):
                return
        raise AssertionError(f"never hit: {selector}")

    def point_at(self, selector: str) -> tuple[float, float]:
        """Move the mouse to the center of a visible element; returns its position.

        Waits until the element does not move and is not covered, because content that loads late shifts the layout.
        """
        quoted = json.dumps(selector)
        self.wait_for(f"document.querySelector({quoted})?.checkVisibility()")
        x, y = self.wait_for(f"({_MIDDLE_AT_REST})({quoted})")
        self.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)
        return x, y

    def type(self, text: str) -> None:
        """Type text into the focused element."""
        self.call("Input.insertText", text=text)

    def press(self, key: str) -> None:
        """Press and release Enter, Tab or Escape."""
        code, text = {"Enter": (13, "\r"), "Tab": (9, ""), "Escape": (27, "")}[key]
        keys = {"key": key, "code": key, "windowsVirtualKeyCode": code}
        self.call("Input.dispatchKeyEvent", type="keyDown" if text else "rawKeyDown", text=text, **keys)
        self.call("Input.dispatchKeyEvent", type="keyUp", **keys)

    def record(self, message: dict[str, Any]) -> None:
        """Record an event of this page."""
        params = message["params"]
        if message["method"] == "Runtime.exceptionThrown":
            self.complaints.append(str(params["exceptionDetails"].get("exception", {}).get("description")))
        elif message["method"] == "Log.entryAdded" and params["entry"]["level"] == "error":
            self.complaints.append(f"{params['entry']['text']} {params['entry'].get('url', '')}")
        elif message["method"] == "Runtime.consoleAPICalled" and params["type"] == "error":
            self.complaints.append(str([argument.get("value") for argument in params["args"]]))


@contextmanager
def running_browser(path: str, profile: Path) -> Iterator[Browser]:
    """Run a browser with an empty profile as long as the block."""
    theirs_in, ours_out = os.pipe()
    ours_in, theirs_out = os.pipe()
    # descriptors above 9, so that duplicating one to 3 cannot overwrite another
    given = [fcntl.fcntl(fd, fcntl.F_DUPFD, 10) for fd in (theirs_in, theirs_out)]
    process = subprocess.Popen(
        [sys.executable, "-c", _STARTER, *map(str, given), path, *FLAGS, f"--user-data-dir={profile}"],
        pass_fds=given,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "HOME": str(profile)},
    )
    for fd in (theirs_in, theirs_out, *given):
        os.close(fd)
    with os.fdopen(ours_out, "wb") as commands, os.fdopen(ours_in, "rb") as replies:
        browser = Browser(commands, replies)
        try:
            yield browser
        finally:
            with contextlib.suppress(BrokenPipeError, queue.Empty):
                browser.call("Browser.close")
            try:
                process.wait(TIMEOUT)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            browser.join()

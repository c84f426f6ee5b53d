"""`ask` and `chat`: a question's answer as it comes, once or again and again."""

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from service.terminal.connection import Document
from service.terminal.events import Event
from service.terminal.failures import Failure, misused
from service.terminal.printing import complain, harmless, numbers_of, progress, remark, say, say_json
from service.terminal.talks import Talk

_HELP = "/frames lists the frames that were looked at, /quit or Ctrl-D ends, Ctrl-C stops an answer."
_HISTORY_LENGTH = 1000


def answer_once(talk: Talk, question: str, *, as_json: bool, as_events: bool) -> None:
    """Print the answer to a question: its text as it comes, its document, or its events, one a line."""
    with _stopped_when_unread(talk):
        if as_events:
            for event in _answer(_ask(talk, question)):
                say_json({"id": event.number, "event": event.name, "data": event.data}, indent=None)
        elif as_json:
            say_json(_whole_answer(talk, _ask(talk, question)))
        else:
            _print_text(_answer(_ask(talk, question)))
    if talk.way_back:
        remark(f'To go on: reeltalk ask {talk.way_back} "…"')


def chat(talk: Talk, *, as_json: bool) -> None:
    """Read questions from the terminal, or line by line from a file, until there are no more.

    What the conversation is still answering comes first.
    """
    is_terminal = sys.stdin.isatty() and sys.stdout.isatty() and not as_json
    if is_terminal:
        remark(_HELP)
    seen: list[Document] = []
    if (running := talk.running()) is not None:
        question, events = running
        remark(f"> {harmless(question)}")
        seen = _answer_in_chat(talk, events, as_json=as_json, is_terminal=is_terminal)
    with _line_editing() if is_terminal else contextlib.nullcontext():
        for line in _lines("> " if is_terminal else ""):
            match line.strip():
                case "":
                    continue
                case "/quit" | "/exit":
                    break
                case "/help":
                    remark(_HELP)
                case "/frames":
                    remark(_frames_of(seen))
                case command if is_terminal and command.startswith("/"):
                    complain(f"There is no command {command}. {_HELP}")
                case question:
                    events = _ask(talk, question)
                    seen = _answer_in_chat(talk, events, as_json=as_json, is_terminal=is_terminal) or seen
    if talk.way_back:
        remark(f"To go on: reeltalk chat {talk.way_back}")


def question_of(argument: str) -> str:
    """The question that a user gives; `-` stands for what comes on stdin."""
    question = sys.stdin.read().strip() if argument == "-" else argument.strip()
    if not question:
        raise misused("The question is empty.")
    return question


def print_history(messages: list[Document]) -> None:
    """What was said before, as the conversation would have shown it."""
    for message in messages:
        mark = "> " if message.get("role") == "user" else ""
        remark(mark + harmless(str(message.get("content", ""))))


def _answer_in_chat(talk: Talk, events: Iterator[Event], *, as_json: bool, is_terminal: bool) -> list[Document]:
    """One answer; to somebody at a terminal neither Ctrl-C nor an error is the end of the conversation.

    Returns the frames that it was given from, where it got to its end.
    """
    try:
        with _stopped_when_unread(talk):
            if as_json:
                say_json(_whole_answer(talk, events), indent=None)
                return []
            return _print_text(_answer(events))
    except KeyboardInterrupt:
        if not is_terminal:
            raise
        say("")
        remark("Stopped.")
    except Failure as failure:
        if not is_terminal:
            raise
        complain(failure.message)
    return []


def _ask(talk: Talk, question: str) -> Iterator[Event]:
    return talk.ask(question.encode(errors="replace").decode())  # a terminal may give bytes that are no text


def _answer(events: Iterator[Event]) -> Iterator[Event]:
    """The events of an answer; an error of it is a `Failure`."""
    for event in _with_progress(events):
        if event.name == "error":
            raise Failure.of_envelope(event.data)
        yield event


def _whole_answer(talk: Talk, events: Iterator[Event]) -> Document:
    for _ in _answer(events):
        pass  # only the end is of interest, but Ctrl-C has to find something to stop
    return talk.answer()


@contextlib.contextmanager
def _stopped_when_unread(talk: Talk) -> Iterator[None]:
    """Stop the answer where it is made, when Ctrl-C or the end of a pipe leaves nobody to read it."""
    try:
        yield
    except (KeyboardInterrupt, BrokenPipeError):
        with contextlib.suppress(Failure):  # it stops by itself when nobody reads it
            talk.stop()
        raise


def _with_progress(events: Iterator[Event]) -> Iterator[Event]:
    """The events, with bars for as long as a video has to be prepared again."""
    with contextlib.ExitStack() as bars:
        show = None
        for event in events:
            if event.name == "progress" and event.data.get("stage") != "ready":
                show = show or bars.enter_context(progress())
                show(str(event.data.get("stage")), float(event.data.get("fraction", 0)), 1)
            else:
                bars.close()
            yield event


def _print_text(events: Iterator[Event]) -> list[Document]:
    """Print an answer's text as it comes. Returns the frames that it was given from."""
    frames: list[Document] = []
    for event in events:
        if event.name == "delta":
            say(str(event.data.get("text", "")), end="")
        elif event.name == "done":
            say("")
            remark(numbers_of(event.data))
            frames = event.data.get("frames") or []
    return frames


def _frames_of(videos: list[Document]) -> str:
    """When the frames are shown that an answer was given from; a line a video."""
    lines = []
    for video in videos:
        times = ", ".join(f"{float(frame.get('timestamp', 0)):.2f}" for frame in video.get("frames") or ())
        lines.append(f"{video.get('video_id') or 'The video'} at {times} s")
    return "\n".join(lines) or "Ask something first."


def _lines(prompt: str) -> Iterator[str]:
    """What is typed; Ctrl-C throws a line away, Ctrl-D ends."""
    while True:
        try:
            yield input(prompt)
        except KeyboardInterrupt:
            if not prompt:
                raise
            say("")
        except EOFError:
            if prompt:
                say("")
            return


@contextlib.contextmanager
def _line_editing() -> Iterator[None]:
    """Keys to edit a line and to find earlier ones, which are kept in a file that only the user reads."""
    try:
        import readline
    except ImportError:  # a Python that was built without
        yield
        return
    state = os.environ.get("XDG_STATE_HOME") or str(Path.home() / ".local" / "state")
    history = Path(state) / "reeltalk" / "history"
    readline.set_history_length(_HISTORY_LENGTH)
    with contextlib.suppress(OSError):
        history.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        history.touch(mode=0o600)
        readline.read_history_file(history)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            readline.write_history_file(history)

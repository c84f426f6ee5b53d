"""Runs `reeltalk ask` and `reeltalk chat`: prints answers while they are generated."""

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from service.terminal.chats import Chat
from service.terminal.connection import Document
from service.terminal.events import Event
from service.terminal.failures import Failure, usage_error
from service.terminal.printing import (
    answer_figures,
    moment_times,
    print_error,
    print_json,
    print_note,
    print_text,
    progress_bars,
    without_controls,
)

_HELP = (
    "/frames lists the frames of the last answer, /model shows the model, /model NAME begins again with another one, "
    "/quit or Ctrl-D exits, Ctrl-C stops an answer."
)
_HISTORY_LENGTH = 1000


def answer_once(chat: Chat, question: str, *, as_json: bool, as_events: bool) -> None:
    """Print the answer to a question as text, as one JSON document, or as one line of JSON for each event."""
    with _cancel_on_interrupt(chat):
        if as_events:
            for event in _answer(_ask(chat, question)):
                print_json({"id": event.number, "event": event.name, "data": event.data}, indent=None)
        elif as_json:
            print_json(_whole_answer(chat, _ask(chat, question)))
        else:
            _print_answer(_answer(_ask(chat, question)))
    if chat.resume_options:
        print_note(f'To continue: reeltalk ask {chat.resume_options} "…"')


def run_chat(chat: Chat, *, as_json: bool) -> None:
    """Read questions from the terminal, or from stdin line by line, and print their answers.

    An answer that is still running in the session is printed first.
    """
    is_terminal = sys.stdin.isatty() and sys.stdout.isatty() and not as_json
    if is_terminal:
        print_note(_HELP)
    frames: list[Document] = []
    if (running := chat.running()) is not None:
        question, events = running
        print_note(f"> {without_controls(question)}")
        frames = _answer_in_chat(chat, events, as_json=as_json, is_terminal=is_terminal)
    with _line_editing() if is_terminal else contextlib.nullcontext():
        for line in _lines("> " if is_terminal else ""):
            match line.strip():
                case "":
                    continue
                case "/quit" | "/exit":
                    break
                case "/help":
                    print_note(_HELP)
                case "/frames":
                    print_note(_frame_times(frames))
                case command if command.split()[0] == "/model":
                    with _reported(is_terminal=is_terminal):
                        _show_or_change_model(chat, command.split()[1:])
                case command if is_terminal and command.startswith("/"):
                    print_error(f"There is no command {command}. {_HELP}")
                case question:
                    events = _ask(chat, question)
                    frames = _answer_in_chat(chat, events, as_json=as_json, is_terminal=is_terminal) or frames
    if chat.resume_options:
        print_note(f"To continue: reeltalk chat {chat.resume_options}")


def question_of(argument: str) -> str:
    """The question in a command's argument; `-` stands for the text on stdin."""
    question = sys.stdin.read().strip() if argument == "-" else argument.strip()
    if not question:
        raise usage_error("The question is empty.")
    return question


def print_history(messages: list[Document]) -> None:
    """Print the earlier messages of a session in the format of a chat."""
    for message in messages:
        mark = "> " if message.get("role") == "user" else ""
        content = str(message.get("content", ""))
        print_note(mark + without_controls(content))
        _print_moments(content, message.get("moments"))


def _answer_in_chat(chat: Chat, events: Iterator[Event], *, as_json: bool, is_terminal: bool) -> list[Document]:
    """Print one answer; on a terminal neither Ctrl-C nor an error ends the chat.

    Returns the frames from which the answer was generated; none if it did not complete.
    """
    with _reported(is_terminal=is_terminal), _cancel_on_interrupt(chat):
        if as_json:
            print_json(_whole_answer(chat, events), indent=None)
        else:
            return _print_answer(_answer(events))
    return []


@contextlib.contextmanager
def _reported(*, is_terminal: bool) -> Iterator[None]:
    """Print an interrupt or an error of this block on a terminal; elsewhere raise it."""
    try:
        yield
    except KeyboardInterrupt:
        if not is_terminal:
            raise
        print_text("")
        print_note("Stopped.")
    except Failure as failure:
        if not is_terminal:
            raise
        print_error(failure.message)


def _show_or_change_model(chat: Chat, names: list[str]) -> None:
    """Print the model of a chat, or begin again with the named one."""
    if len(names) > 1:
        raise usage_error("Name one model: /model NAME.")
    if names:
        chat.change_model(names[0])
    print_note(f"Model {chat.model()}." + (" The conversation begins again." if names else ""))


def _ask(chat: Chat, question: str) -> Iterator[Event]:
    return chat.ask(question.encode(errors="replace").decode())  # a terminal may deliver bytes that are not UTF-8


def _answer(events: Iterator[Event]) -> Iterator[Event]:
    """Yield the events of an answer; raises `Failure` for an `error` event."""
    for event in _with_progress(events):
        if event.name == "error":
            raise Failure.from_envelope(event.data)
        yield event


def _whole_answer(chat: Chat, events: Iterator[Event]) -> Document:
    for _ in _answer(events):
        pass  # reads the stream to its end, so that Ctrl-C can cancel the answer
    return chat.answer()


@contextlib.contextmanager
def _cancel_on_interrupt(chat: Chat) -> Iterator[None]:
    """Cancel the running answer when Ctrl-C or a closed pipe interrupts this block."""
    try:
        yield
    except (KeyboardInterrupt, BrokenPipeError):
        with contextlib.suppress(Failure):  # the service cancels an answer without readers by itself
            chat.stop()
        raise


def _with_progress(events: Iterator[Event]) -> Iterator[Event]:
    """Yield the events, and show progress bars while a video is prepared again."""
    with contextlib.ExitStack() as bars:
        show = None
        for event in events:
            if event.name == "progress" and event.data.get("stage") != "ready":
                show = show or bars.enter_context(progress_bars())
                show(str(event.data.get("stage")), float(event.data.get("fraction", 0)), 1)
            else:
                bars.close()
            yield event


def _print_answer(events: Iterator[Event]) -> list[Document]:
    """Print the text of an answer while it is generated; returns the frames from which it was generated."""
    frames: list[Document] = []
    text = ""
    for event in events:
        if event.name == "delta":
            text += str(event.data.get("text", ""))
            print_text(str(event.data.get("text", "")), end="")
        elif event.name == "done":
            print_text("")
            _print_moments(text, event.data.get("moments"))
            print_note(answer_figures(event.data))
            frames = event.data.get("frames") or []
    return frames


def _print_moments(text: str, moments: list[Document] | None) -> None:
    """Print the times of the moments that an answer names, if there are any."""
    if times := moment_times(text, moments):
        print_note(times)


def _frame_times(videos: list[Document]) -> str:
    """The timestamps of the frames of the last answer, one line for each video."""
    lines = []
    for video in videos:
        times = ", ".join(f"{float(frame.get('timestamp', 0)):.2f}" for frame in video.get("frames") or ())
        lines.append(f"{video.get('video_id') or 'The video'} at {times} s")
    return "\n".join(lines) or "There is no answer yet."


def _lines(prompt: str) -> Iterator[str]:
    """Yield the lines of input; at a prompt Ctrl-C discards the line and Ctrl-D ends the input."""
    while True:
        try:
            yield input(prompt)
        except KeyboardInterrupt:
            if not prompt:
                raise
            print_text("")
        except EOFError:
            if prompt:
                print_text("")
            return


@contextlib.contextmanager
def _line_editing() -> Iterator[None]:
    """Enable line editing and a history, which is kept in a file that only the user can read."""
    try:
        import readline
    except ImportError:  # this Python was built without readline
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

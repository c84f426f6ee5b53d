"""Prints results to stdout and everything else to stderr; progress and notes only if stderr is a terminal."""

import contextlib
import json
import os
import sys
from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Any, Protocol

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
)
from rich.table import Table
from rich.text import Text

from service.terminal.failures import Exit, Failure


class ShowProgress(Protocol):
    """A function that updates the progress bar of a task."""

    def __call__(self, what: str, done: float = 0, total: float | None = None) -> None:
        """Show `done` of `total`: bytes if `total` is greater than 1, else a fraction; None is an unknown total."""


class _Amount(ProgressColumn):
    """A column that shows bytes or a percentage."""

    _bytes = DownloadColumn()

    def render(self, task: Task) -> Text:
        """Render the amount of one task."""
        if task.total is None:
            return Text("")
        return self._bytes.render(task) if task.total > 1 else Text(f"{task.percentage:.0f}%")


_TABLE_WIDTH = 1000  # characters; if stdout is not a terminal, no line is truncated
_CONTROLS = dict.fromkeys([*range(0x20), *range(0x7F, 0xA0)])
del _CONTROLS[ord("\n")], _CONTROLS[ord("\t")]


def without_controls(text: str) -> str:
    """Remove the control characters that could change the state of a terminal."""
    return text.translate(_CONTROLS)


def print_text(text: str, *, end: str = "\n") -> None:
    """Print a part of the result and flush it."""
    sys.stdout.write(without_controls(text) + end)
    sys.stdout.flush()


def print_json(document: object, *, indent: int | None = 2) -> None:
    """Print a JSON document; with `indent=None` on one line."""
    sys.stdout.write(json.dumps(document, ensure_ascii=False, indent=indent) + "\n")
    sys.stdout.flush()


def print_note(text: str) -> None:
    """Print a note to stderr if it is a terminal."""
    if sys.stderr.isatty():
        Console(stderr=True).print(Text(without_controls(text), style="dim"), soft_wrap=True)


def print_error(text: str) -> None:
    """Print an error to stderr."""
    sentence = Text(f"reeltalk: {without_controls(text)}", style="red")
    Console(stderr=True).print(sentence, soft_wrap=True)


def print_table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table of text."""
    console = Console(width=None if sys.stdout.isatty() else _TABLE_WIDTH)
    table = Table(*titles, box=None, pad_edge=False)
    for column in table.columns[:1]:
        column.no_wrap = True
    for row in rows:
        table.add_row(*(Text(without_controls(cell)) for cell in row))
    with console.capture() as captured:
        console.print(table)
    for line in captured.get().splitlines():
        sys.stdout.write(line.rstrip() + "\n")


def format_time(seconds: object) -> str:
    """Format a Unix time as local date and time; empty if it is not a number."""
    if not isinstance(seconds, int | float):
        return ""
    return datetime.fromtimestamp(seconds).astimezone().strftime("%Y-%m-%d %H:%M")


@contextlib.contextmanager
def progress_bars() -> Iterator[ShowProgress]:
    """Show progress bars on stderr, one for each task, and remove them after the block."""
    columns = (TextColumn("{task.description:<8}"), BarColumn(), _Amount(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as bars:
        tasks: dict[str, TaskID] = {}

        def show(what: str, done: float = 0, total: float | None = None) -> None:
            if what not in tasks:
                tasks[what] = bars.add_task(what, total=total)
            bars.update(tasks[what], completed=done, total=total)

        yield show


@contextlib.contextmanager
def exit_on_failure(*, as_json: bool) -> Iterator[None]:
    """Exit the program with the message and status of a `Failure`; with `as_json` print its document too."""
    try:
        yield
    except Failure as failure:
        print_error(failure.message)
        if as_json:
            print_json(failure.envelope())
        sys.exit(int(failure.status))
    except KeyboardInterrupt:
        sys.exit(int(Exit.INTERRUPTED))
    except BrokenPipeError:  # the reader of stdout, for example `head`, has ended
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(int(Exit.FAILED))


def clock(seconds: float) -> str:
    """Format a time of a video: 63.25 is 1:03, and 3723 is 1:02:03."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def moment_times(text: str, moments: Sequence[dict[str, Any]] | None) -> str:
    """Describe the moments that an answer names, a line for each: its times, and its words in the answer."""
    lines = []
    for moment in moments or ():
        words = text[int(moment.get("text_start", 0)) : int(moment.get("text_end", 0))]
        times = f"{clock(float(moment['start']))}–{clock(float(moment['end']))}"
        lines.append(f"{times}  {words}".rstrip())
    return "\n".join(lines)


def answer_figures(done: dict[str, Any]) -> str:
    """Describe the length and speed of an answer in a few words, from the data of its `done` event."""
    usage, timings = done.get("usage") or {}, done.get("timings") or {}
    first = timings.get("time_to_first_token_ms")
    words = [f"{usage.get('completion_tokens', 0)} tokens"]
    words += [] if first is None else [f"the first after {first:.0f} ms"]
    return ", ".join([*words, str(done.get("finish_reason"))])

"""What the commands print: results on stdout, everything else on stderr, and progress only where somebody looks."""

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
    """Takes what is being done and how far it is."""

    def __call__(self, what: str, done: float = 0, total: float | None = None) -> None:
        """`done` of `total`: bytes if that is more than 1. Without a total nobody knows how long it takes."""


class _Amount(ProgressColumn):
    """Bytes, or how much of the whole."""

    _bytes = DownloadColumn()

    def render(self, task: Task) -> Text:
        """One bar's figure."""
        if task.total is None:
            return Text("")
        return self._bytes.render(task) if task.total > 1 else Text(f"{task.percentage:.0f}%")


_TABLE_WIDTH = 1000  # where nobody looks, a line is never cut
_CONTROLS = dict.fromkeys([*range(0x20), *range(0x7F, 0xA0)])
del _CONTROLS[ord("\n")], _CONTROLS[ord("\t")]


def harmless(text: str) -> str:
    """Text without the characters by which a terminal could be steered."""
    return text.translate(_CONTROLS)


def say(text: str, *, end: str = "\n") -> None:
    """Print a part of the result at once."""
    sys.stdout.write(harmless(text) + end)
    sys.stdout.flush()


def say_json(document: object, *, indent: int | None = 2) -> None:
    """Print a document; without `indent` on one line."""
    sys.stdout.write(json.dumps(document, ensure_ascii=False, indent=indent) + "\n")
    sys.stdout.flush()


def remark(text: str) -> None:
    """Tell somebody who looks; where nobody does, nothing is printed."""
    if sys.stderr.isatty():
        Console(stderr=True).print(Text(harmless(text), style="dim"), soft_wrap=True)


def complain(text: str) -> None:
    """One sentence on stderr, whoever reads it."""
    sentence = Text(f"reeltalk: {harmless(text)}", style="red")
    Console(stderr=True).print(sentence, soft_wrap=True)


def say_table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table of text; for other programs there is `--json`."""
    console = Console(width=None if sys.stdout.isatty() else _TABLE_WIDTH)
    table = Table(*titles, box=None, pad_edge=False)
    for column in table.columns[:1]:
        column.no_wrap = True
    for row in rows:
        table.add_row(*(Text(harmless(cell)) for cell in row))
    with console.capture() as captured:
        console.print(table)
    for line in captured.get().splitlines():
        sys.stdout.write(line.rstrip() + "\n")


def moment(seconds: object) -> str:
    """A time since 1970 as a clock on the wall has it."""
    if not isinstance(seconds, int | float):
        return ""
    return datetime.fromtimestamp(seconds).astimezone().strftime("%Y-%m-%d %H:%M")


@contextlib.contextmanager
def progress() -> Iterator[ShowProgress]:
    """Bars on stderr, one for each thing that is done; they are gone after the block."""
    columns = (TextColumn("{task.description:<8}"), BarColumn(), _Amount(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as bars:
        tasks: dict[str, TaskID] = {}

        def show(what: str, done: float = 0, total: float | None = None) -> None:
            if what not in tasks:
                tasks[what] = bars.add_task(what, total=total)
            bars.update(tasks[what], completed=done, total=total)

        yield show


@contextlib.contextmanager
def failures_told(*, as_json: bool) -> Iterator[None]:
    """End the program with the failure's sentence and status; with `as_json` its document takes the result's place."""
    try:
        yield
    except Failure as failure:
        complain(failure.message)
        if as_json:
            say_json(failure.envelope())
        sys.exit(int(failure.status))
    except KeyboardInterrupt:
        sys.exit(int(Exit.INTERRUPTED))
    except BrokenPipeError:  # whoever read the result has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(int(Exit.FAILED))


def numbers_of(done: dict[str, Any]) -> str:
    """The length and the pace of an answer, in a few words."""
    usage, timings = done.get("usage") or {}, done.get("timings") or {}
    first = timings.get("time_to_first_token_ms")
    words = [f"{usage.get('completion_tokens', 0)} tokens"]
    words += [] if first is None else [f"the first after {first:.0f} ms"]
    return ", ".join([*words, str(done.get("finish_reason"))])

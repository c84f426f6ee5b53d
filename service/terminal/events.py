"""Server-Sent Events out of lines of text; no I/O."""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True, slots=True)
class Event:
    """One event; `number` is None for one that is about the connection and in no log."""

    number: int | None
    name: str
    data: dict[str, Any]


def parse_events(lines: Iterable[str]) -> Iterator[Event]:
    """The events that came whole: one that breaks off before its blank line is none.

    Raises:
        ValueError: an event's number or data is not what the service sends.
    """
    number, name, data = None, "message", ""
    for line in lines:
        field, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if not line:
            if data:
                yield Event(number=number, name=name, data=_document(data))
            number, name, data = None, "message", ""
        elif field == "id":
            number = int(value)
        elif field == "event":
            name = value
        elif field == "data":
            data = f"{data}\n{value}" if data else value


def _document(text: str) -> dict[str, Any]:
    document = json.loads(text)
    if not isinstance(document, dict):
        raise ValueError("an event's data is an object")
    return document

"""Parses Server-Sent Events from lines of text, without I/O."""

import json
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True, slots=True)
class Event:
    """One event; `number` is None if the event concerns the connection and is not part of a log."""

    number: int | None
    name: str
    data: dict[str, Any]


class EventReader:
    """Parses a stream line by line; an event without its final blank line is discarded."""

    def __init__(self) -> None:
        self._number: int | None = None
        self._name = "message"
        self._data: list[str] = []

    def feed(self, line: str) -> Event | None:
        """Parse one line; returns the event that it completes, if any.

        Raises:
            ValueError: the id of an event is not a number, or its data is not a JSON object.
        """
        if not line:
            return self._complete()
        field, _, value = line.partition(":")
        value = value.removeprefix(" ")
        match field:
            case "id":
                self._number = int(value)
            case "event":
                self._name = value
            case "data":
                self._data.append(value)
        return None

    def _complete(self) -> Event | None:
        number, name, data = self._number, self._name, "\n".join(self._data)
        self._number, self._name, self._data = None, "message", []
        if not data:
            return None
        document = json.loads(data)
        if not isinstance(document, dict):
            raise ValueError("the data of an event must be a JSON object")
        return Event(number=number, name=name, data=document)

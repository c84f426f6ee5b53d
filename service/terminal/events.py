"""Server-Sent Events out of lines of text; no I/O."""

import json
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True, slots=True)
class Event:
    """One event; `number` is None for one that is about the connection and in no log."""

    number: int | None
    name: str
    data: dict[str, Any]


class EventReader:
    """Takes a stream's lines one by one. What breaks off before its blank line is no event."""

    def __init__(self) -> None:
        self._number: int | None = None
        self._name = "message"
        self._data: list[str] = []

    def feed(self, line: str) -> Event | None:
        """The event that this line completes, if it completes one.

        Raises:
            ValueError: an event's number or data is not what the service sends.
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
            raise ValueError("an event's data is an object")
        return Event(number=number, name=name, data=document)

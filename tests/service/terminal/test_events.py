"""The parser of Server-Sent Events yields complete events only."""

import pytest

from service.terminal.events import Event, EventReader


def read(text: str) -> list[Event]:
    reader = EventReader()
    return [event for line in text.split("\n") if (event := reader.feed(line)) is not None]


def test_an_event_has_its_number_name_and_data() -> None:
    assert read('id: 7\nevent: delta\ndata: {"text":"a: b"}\n\n') == [
        Event(number=7, name="delta", data={"text": "a: b"})
    ]


def test_an_event_without_an_id_has_no_number() -> None:
    assert [event.number for event in read('id: 1\nevent: a\ndata: {}\n\nevent: error\ndata: {"error":{}}\n\n')] == [
        1,
        None,
    ]


def test_comments_and_unknown_fields_are_ignored() -> None:
    assert read(": keep-alive\n\nretry: 3\n\n") == []


def test_data_of_several_lines_is_one_document() -> None:
    assert read('data: {"a":\ndata: 1}\n\n')[0].data == {"a": 1}


def test_an_incomplete_event_is_discarded() -> None:
    assert read('id: 1\nevent: delta\ndata: {"text":"a"}') == []


@pytest.mark.parametrize("text", ["id: x\n\n", "data: {\n\n", "data: 1\n\n"])
def test_an_invalid_event_is_an_error(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        read(text)

"""Events go over the wire as browsers read them, one by one, with signs of life, and an honest end."""

import contextlib
from collections.abc import AsyncGenerator

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.api import sse
from service.api.sse import encode, event_stream
from service.errors import StorageUnavailable
from service.store.event_log import LogEvent
from tests.running import Event, parse_events

FIRST, SECOND = LogEvent(1, "answer", {"id": "ans_1"}), LogEvent(2, "delta", {"text": "Hi\n\ndata: there\r"})
Source = AsyncGenerator[LogEvent | None, None]


async def body(events: Source) -> bytes:
    chunks = event_stream(events).body_iterator
    return b"".join([bytes(chunk) async for chunk in chunks if not isinstance(chunk, str)])


@given(number=st.integers(1, 2**53), text=st.text(st.characters(exclude_categories=["Cs"])))
def test_an_event_arrives_as_it_was_sent_whatever_its_text(number: int, text: str) -> None:
    wire = encode(LogEvent(number, "delta", {"text": text}))
    assert wire.count(b"\n") == 4, "a line break of the text is no line break of the stream"
    [arrived] = parse_events(iter(wire.decode().split("\n")))
    assert arrived == Event(number, "delta", {"text": text})


async def test_a_stream_is_its_events_and_ends() -> None:
    async def events() -> Source:
        for event in (FIRST, None, SECOND):
            yield event

    assert await body(events()) == encode(FIRST) + encode(SECOND)


async def test_silence_is_broken_by_comments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sse, "_KEEP_ALIVE", 0.0)

    async def events() -> Source:
        for event in (None, FIRST):
            yield event

    wire = await body(events())
    assert wire == b": keep-alive\n\n" + encode(FIRST)
    assert [event.id for event in parse_events(iter(wire.decode().split("\n")))] == [1]


@pytest.mark.parametrize(
    ("failure", "code"),
    [
        (StorageUnavailable("store_unavailable", "Try again."), "store_unavailable"),
        (RuntimeError("secret"), "internal_error"),
    ],
)
async def test_a_stream_that_breaks_off_says_so_and_no_more(failure: Exception, code: str) -> None:
    async def events() -> Source:
        yield FIRST
        raise failure

    wire = await body(events())
    last = wire.removeprefix(encode(FIRST)).decode()
    assert b"secret" not in wire
    assert "id:" not in last, "a client that comes back goes on after the last event it has"
    assert last.startswith("event: error\ndata: ")
    assert orjson.loads(last.split("data: ")[1])["error"]["code"] == code


async def test_a_reader_who_leaves_is_noticed_at_once() -> None:
    left = False

    async def events() -> Source:
        nonlocal left
        try:
            while True:
                yield FIRST
        finally:
            left = True

    stream = event_stream(events()).body_iterator
    assert isinstance(stream, AsyncGenerator)
    async with contextlib.aclosing(stream):
        await anext(stream)
    assert left


async def test_no_proxy_is_to_hold_tokens_back() -> None:
    async def events() -> Source:
        yield FIRST

    response = event_stream(events())
    assert response.headers["Content-Type"] == "text/event-stream; charset=utf-8"
    assert response.headers["X-Accel-Buffering"] == "no"
    assert response.headers["Cache-Control"] == "no-store"
    await body(events())

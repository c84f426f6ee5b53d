"""Events are sent as browsers read them, one by one, with keep-alive comments, and errors end the stream."""

import asyncio
from collections.abc import AsyncGenerator, Sequence

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.types import Message, Receive

from service.api import sse
from service.api.sse import EventStreamResponse, data_stream, encode, event_stream
from service.errors import StorageUnavailable
from service.store.event_log import LogEvent
from tests.running import Event, parse_events


async def connected() -> Message:
    """What the server reports about a client that stays connected: nothing."""
    await asyncio.Event().wait()
    raise AssertionError


FIRST, SECOND = LogEvent(1, "answer", {"id": "ans_1"}), LogEvent(2, "delta", {"text": "Hi\n\ndata: there\r"})
Source = AsyncGenerator[Sequence[LogEvent], None]


async def sent(
    response: EventStreamResponse, *, receive: Receive = connected, messages: list[Message] | None = None
) -> bytes:
    """Everything that a response sends as its body."""
    messages = [] if messages is None else messages

    async def send(message: Message) -> None:
        messages.append(dict(message))

    await response({"type": "http"}, receive, send)
    return b"".join(message.get("body", b"") for message in messages)


async def body(events: Source) -> bytes:
    return await sent(event_stream(events))


@given(number=st.integers(1, 2**53), text=st.text(st.characters(exclude_categories=["Cs"])))
def test_an_event_arrives_as_it_was_sent_whatever_its_text(number: int, text: str) -> None:
    wire = encode(LogEvent(number, "delta", {"text": text}))
    assert wire.count(b"\n") == 4, "a line break of the text is no line break of the stream"
    [arrived] = parse_events(iter(wire.decode().split("\n")))
    assert arrived == Event(number, "delta", {"text": text})


async def test_a_stream_is_its_events_and_ends() -> None:
    async def events() -> Source:
        yield [FIRST, SECOND]

    assert await body(events()) == encode(FIRST) + encode(SECOND)


async def test_comments_are_sent_while_there_are_no_events(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sse, "_KEEP_ALIVE", 0.05)

    async def events() -> Source:
        yield [FIRST]
        await asyncio.sleep(0.5)
        yield [SECOND]

    wire = await body(events())
    assert wire.startswith(encode(FIRST) + b": keep-alive\n\n")
    assert wire.endswith(b": keep-alive\n\n" + encode(SECOND))
    assert 2 < wire.count(b": keep-alive\n\n") < 11
    assert [event.id for event in parse_events(iter(wire.decode().split("\n")))] == [1, 2]


async def test_no_comment_is_sent_while_events_come(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sse, "_KEEP_ALIVE", 0.3)

    async def events() -> Source:
        for _ in range(10):
            yield [FIRST]
            await asyncio.sleep(0.05)

    assert b": keep-alive" not in await body(events())


async def test_streams_of_documents_are_kept_alive_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sse, "_KEEP_ALIVE", 0.05)

    async def documents() -> AsyncGenerator[bytes, None]:
        await asyncio.sleep(0.1)
        yield b"[DONE]"

    wire = await sent(data_stream(documents()))
    assert wire.startswith(b": keep-alive\n\n")
    assert wire.endswith(b"data: [DONE]\n\n")


@pytest.mark.parametrize(
    ("failure", "code"),
    [
        (StorageUnavailable("store_unavailable", "Try again."), "store_unavailable"),
        (RuntimeError("secret"), "internal_error"),
    ],
)
async def test_a_stream_that_fails_ends_with_an_error_event_without_internals(failure: Exception, code: str) -> None:
    async def events() -> Source:
        yield [FIRST]
        raise failure

    wire = await body(events())
    last = wire.removeprefix(encode(FIRST)).decode()
    assert b"secret" not in wire
    assert "id:" not in last, "a client that comes back goes on after the last event it has"
    assert last.startswith("event: error\ndata: ")
    assert orjson.loads(last.split("data: ")[1])["error"]["code"] == code


async def test_the_generator_is_closed_as_soon_as_the_client_disconnects() -> None:
    is_closed = False
    has_disconnected = asyncio.Event()

    async def events() -> Source:
        nonlocal is_closed
        try:
            yield [FIRST]
            has_disconnected.set()
            await asyncio.sleep(60)
        finally:
            is_closed = True

    async def receive() -> Message:
        await has_disconnected.wait()
        return {"type": "http.disconnect"}

    messages: list[Message] = []
    async with asyncio.timeout(5):
        assert await sent(event_stream(events()), receive=receive, messages=messages) == encode(FIRST)
    assert is_closed
    assert messages[-1]["more_body"], "a response that was cut off has no final chunk"


async def test_the_generator_is_closed_when_the_client_disconnects_while_an_event_is_sent() -> None:
    is_closed = False
    is_sending = asyncio.Event()

    async def events() -> Source:
        nonlocal is_closed
        try:
            while True:
                yield [FIRST]
        finally:
            is_closed = True

    async def receive() -> Message:
        await is_sending.wait()
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        if message["type"] == "http.response.body":
            is_sending.set()
            await asyncio.sleep(60)  # the client does not read

    async with asyncio.timeout(5):
        await event_stream(events())({"type": "http"}, receive, send)
    assert is_closed


async def test_the_headers_stop_proxies_from_buffering_and_caching() -> None:
    async def events() -> Source:
        yield [FIRST]

    response = event_stream(events())
    assert response.headers["Content-Type"] == "text/event-stream; charset=utf-8"
    assert response.headers["X-Accel-Buffering"] == "no"
    assert response.headers["Cache-Control"] == "no-store"
    await body(events())

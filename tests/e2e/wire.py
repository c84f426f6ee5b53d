"""A TCP relay between a client and the service whose connections a test can cut; runs in a thread."""

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit


class Wire:
    """A relay to the service at `target`; `url` is the address for clients."""

    def __init__(self, target: str) -> None:
        parts = urlsplit(target)
        self._target = (parts.hostname, parts.port)
        self._connections: set[asyncio.StreamWriter] = set()
        self._relays: set[asyncio.Task[None]] = set()
        self._loop = asyncio.new_event_loop()
        self._server = self._loop.run_until_complete(asyncio.start_server(self._accept, "127.0.0.1", 0))
        self.fuses: list[int] = []
        """Break the connection after each of these numbers of bytes sent to the service, one after another."""
        self.num_breaks = 0
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    def cut(self) -> None:
        """Abort all connections; when this returns they have ended, and new ones are relayed."""
        asyncio.run_coroutine_threadsafe(self._cut(), self._loop).result(timeout=10)

    def run(self) -> None:
        """Relay until `stop`."""
        self._loop.run_forever()
        self._server.close()
        self._loop.run_until_complete(self._cut())
        self._loop.close()

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)

    async def _cut(self) -> None:
        for writer in self._connections:
            writer.transport.abort()
        await asyncio.gather(*self._relays, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        relay = asyncio.ensure_future(self._relay(reader, writer))
        self._relays.add(relay)
        relay.add_done_callback(self._relays.discard)

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await asyncio.open_connection(*self._target)
        self._connections |= {writer, far_writer}
        try:
            await asyncio.gather(_pump(self._fused(reader), far_writer), _pump(_read(far_reader), writer))
        finally:
            self._connections -= {writer, far_writer}

    async def _fused(self, reader: asyncio.StreamReader) -> AsyncIterator[bytes]:
        async for data in _read(reader):
            yield data
            if self.fuses:
                self.fuses[0] -= len(data)
                if self.fuses[0] <= 0:
                    del self.fuses[0]
                    self.num_breaks += 1
                    for writer in self._connections:
                        writer.transport.abort()


async def _read(reader: asyncio.StreamReader) -> AsyncIterator[bytes]:
    while data := await reader.read(1 << 16):
        yield data


async def _pump(source: AsyncIterator[bytes], writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(ConnectionError):
        async for data in source:
            writer.write(data)
            await writer.drain()
    writer.close()


@contextmanager
def wire_to(target: str) -> Iterator[Wire]:
    """Run a relay to the service at `target`."""
    wire = Wire(target)
    thread = threading.Thread(target=wire.run)
    thread.start()
    try:
        yield wire
    finally:
        wire.stop()
        thread.join()

"""Runs the app in the foreground: a uvicorn server that reports start, readiness and shutdown on the terminal."""

import asyncio
import contextlib
import gc
import signal
import socket
from collections.abc import Iterator
from types import FrameType

import structlog
import uvicorn
from rich.console import Console

from service.api.dependencies import Service
from service.api.size_limits import BoundedHeadProtocol
from service.app import create_app
from service.commands.demo import SAMPLE
from service.errors import Unavailable
from service.settings import Settings, is_loopback
from service.store.redis_server import RedisServerError, embedded_redis
from service.workers.supervisor import WorkersCannotStart

_log = structlog.get_logger(__name__)
_IMMEDIATE_STOP = 2  # the number of the Ctrl-C that stops without waiting for answers
_STREAMS_END = 3  # seconds for streams to close after the last event has been written

_EXAMPLE = """
  VIDEO=$(curl -sF file=@{clip} {url}/v1/videos | grep -o 'vid_[0-9a-f]*' | head -n 1)
  SESSION=$(curl -s {url}/v1/sessions --json '{{"video_ids": ["'$VIDEO'"]}}' | grep -o 'ses_[0-9a-f]*' | head -n 1)
  curl -sN {url}/v1/sessions/$SESSION/messages --json '{{"content": "What happens?", "stream": true}}'
"""


class ReeltalkServer(uvicorn.Server):
    """A uvicorn server that drains before it closes its sockets, and prints its state to the terminal."""

    def __init__(self, settings: Settings, *, redis_url: str, console: Console) -> None:
        self._app = create_app(settings, redis_url=redis_url)
        self._console = console
        self._host = settings.host
        self._announcement: asyncio.Task[None] | None = None
        self._stop_immediately = asyncio.Event()
        self.problem: str | None = None
        """Why the server stopped by itself, in one sentence."""
        self._num_interrupts = 0
        self._loop: asyncio.AbstractEventLoop | None = None
        super().__init__(
            uvicorn.Config(
                self._app,
                host=settings.host,
                port=settings.port,
                http=BoundedHeadProtocol,
                log_config=None,
                access_log=False,
                server_header=False,
                timeout_graceful_shutdown=settings.shutdown_timeout + _STREAMS_END,
            )
        )

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Open the socket, and announce in the background when the model is loaded."""
        self._loop = asyncio.get_running_loop()
        self._console.print("[dim]Loading the model …[/dim]")
        await super().startup(sockets)
        gc.freeze()  # a full collection of the imported modules would delay every stream by 80 ms
        if self.started:
            self._announcement = asyncio.create_task(self._announce())

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin to stop. After Ctrl-C, unlike SIGTERM, the drain skips the notice to a balancer.

        The second Ctrl-C stops immediately but still cleans up; the third is uvicorn's forced exit.
        """
        self._num_interrupts += sig == signal.SIGINT
        if sig == signal.SIGINT and self._num_interrupts == _IMMEDIATE_STOP and self._loop is not None:
            self._loop.call_soon_threadsafe(self._stop_immediately.set)
        else:
            super().handle_exit(sig, frame)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Drain while the socket is open, close it, wait a bounded time for streams, then end all child processes."""
        self._console.print("[dim]Stopping …[/dim]")
        if self._announcement is not None:
            self._announcement.cancel()
        service: Service = self._app.state.service
        aborting = asyncio.create_task(self._abort_when_requested(service))
        service.drain.begin(at_once=self._num_interrupts > 0 or self.problem is not None)
        await service.drain.closed()
        closing = asyncio.create_task(self._close_streams(service))
        await super().shutdown(sockets)
        await closing
        aborting.cancel()

    async def _close_streams(self, service: Service) -> None:
        """End the streams of all readers once the answers have ended or have been released."""
        await service.drain.finish()
        service.answers.dismiss_readers()

    async def _abort_when_requested(self, service: Service) -> None:
        """After a second Ctrl-C, leave the answers to the next start and cancel all other requests."""
        await self._stop_immediately.wait()
        self._console.print("[dim]Stopping immediately …[/dim]")
        service.drain.give_up()
        await service.drain.finish()
        await asyncio.sleep(_STREAMS_END)
        for request in self.server_state.tasks:
            request.cancel()

    async def _announce(self) -> None:
        service: Service = self._app.state.service
        try:
            info = await service.pools.started()
        except WorkersCannotStart as error:
            self.problem = str(error)
            self.should_exit = True
            return
        host, port = self.servers[0].sockets[0].getsockname()[:2]
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104  an address that a client can open
        url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
        size = f"{info.num_parameters / 1e6:.1f} M parameters" + (f", {info.quantization}" if info.quantization else "")
        others = ", ".join(f"{model.spec.name} ({model.state})" for model in service.pools if model.info is not info)
        models = f"the model {info.name} ({size})" + (f"; others: {others}" if others else "")
        ready = f"Reeltalk is ready at {url}/ with {models}. Ctrl-C stops it."
        self._console.print(ready, highlight=False, soft_wrap=True)
        example = _EXAMPLE.format(url=url, clip=SAMPLE)
        if await self._is_open(service):
            if not is_loopback(self._host):
                _log.warning("open_to_the_network", host=self._host, advice="requests need no API key")
        else:
            example = example.replace("curl ", 'curl -H "Authorization: Bearer $KEY" ')
        self._console.print(example, highlight=False, markup=False, soft_wrap=True)

    @staticmethod
    async def _is_open(service: Service) -> bool:
        try:
            return await service.authentication.is_open()
        except Unavailable:  # then every request is refused
            return False


def serve(settings: Settings, *, console: Console) -> int:
    """Run a replica until a signal stops it; returns the exit status."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # uvicorn raises it again after its shutdown
    try:
        with _redis(settings, console) as url:
            server = ReeltalkServer(settings, redis_url=url, console=console)
            try:
                server.run()
            finally:
                _ignore_signals()
    except KeyboardInterrupt:
        return 0
    except RedisServerError as error:
        console.print(str(error), style="red", highlight=False, soft_wrap=True)
        return 1
    if server.problem is not None:
        console.print(f"reeltalk: {server.problem}", style="red", highlight=False, markup=False, soft_wrap=True)
    return 0 if server.started and server.problem is None else 1


def _ignore_signals() -> None:
    """Ignore further signals: only Redis has to end, in bounded time, and Ctrl-C would print a traceback."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


@contextlib.contextmanager
def _redis(settings: Settings, console: Console) -> Iterator[str]:
    """Yield the URL of the configured Redis, or of an embedded one that runs as long as this block."""
    if settings.redis_url is not None:
        yield settings.redis_url.get_secret_value()
        return
    console.print("[dim]Starting Redis …[/dim]")
    with embedded_redis(settings.data_dir) as url:
        yield url

"""Runs the app in the foreground: one uvicorn server that tells the terminal when a question would be answered."""

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
from service.workers.pool import WorkersCannotStart

_log = structlog.get_logger(__name__)
_AT_ONCE = 2  # which Ctrl-C it is that waits for nothing
_STREAMS_END = 3  # seconds that streams have to close when nothing is written into them any more

_EXAMPLE = """
  VIDEO=$(curl -sF file=@{clip} {url}/v1/videos | grep -o 'vid_[0-9a-f]*' | head -n 1)
  SESSION=$(curl -s {url}/v1/sessions --json '{{"video_ids": ["'$VIDEO'"]}}' | grep -o 'ses_[0-9a-f]*' | head -n 1)
  curl -sN {url}/v1/sessions/$SESSION/messages --json '{{"content": "What happens?", "stream": true}}'
"""


class ReeltalkServer(uvicorn.Server):
    """A server that announces its start, its readiness and its end."""

    def __init__(self, settings: Settings, *, redis_url: str, console: Console) -> None:
        self._app = create_app(settings, redis_url=redis_url)
        self._console = console
        self._host = settings.host
        self._announcement: asyncio.Task[None] | None = None
        self._impatience = asyncio.Event()
        self.problem: str | None = None
        """Why it ended by itself, in a sentence."""
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
        """Open the socket, then watch for the model."""
        self._loop = asyncio.get_running_loop()
        self._console.print("[dim]Loading the model …[/dim]")
        await super().startup(sockets)
        gc.freeze()  # a look through what the imports have left would hold up every stream for 80 ms
        if self.started:
            self._announcement = asyncio.create_task(self._announce())

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin to stop; Ctrl-C means that somebody waits for it, and no balancer has to hear of it first.

        The second one stops at once, still in order; the third is uvicorn's own way out, whatever is left behind.
        """
        self._num_interrupts += sig == signal.SIGINT
        if sig == signal.SIGINT and self._num_interrupts == _AT_ONCE and self._loop is not None:
            self._loop.call_soon_threadsafe(self._impatience.set)
        else:
            super().handle_exit(sig, frame)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Drain while the door is still open, close it, let the streams end within bounds, then end every child."""
        self._console.print("[dim]Stopping …[/dim]")
        if self._announcement is not None:
            self._announcement.cancel()
        service: Service = self._app.state.service
        breaking_off = asyncio.create_task(self._break_off(service))
        service.drain.begin(at_once=self._num_interrupts > 0 or self.problem is not None)
        await service.drain.closed()
        dismissing = asyncio.create_task(self._dismiss_readers(service))
        await super().shutdown(sockets)
        await dismissing
        breaking_off.cancel()

    async def _dismiss_readers(self, service: Service) -> None:
        await service.drain.finish()
        service.answering.dismiss()

    async def _break_off(self, service: Service) -> None:
        """Once nobody wants to wait any more: leave the answers to the next start, cut off what else is on the way."""
        await self._impatience.wait()
        self._console.print("[dim]Stopping at once …[/dim]")
        service.drain.give_up()
        await service.drain.finish()
        await asyncio.sleep(_STREAMS_END)
        for request in self.server_state.tasks:
            request.cancel()

    async def _announce(self) -> None:
        service: Service = self._app.state.service
        try:
            info = await service.pool.started()
        except WorkersCannotStart as error:
            self.problem = str(error)
            self.should_exit = True
            return
        host, port = self.servers[0].sockets[0].getsockname()[:2]
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104  an address that can be opened
        url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
        size = f"{info.num_parameters / 1e6:.1f} M parameters" + (f", {info.quantization}" if info.quantization else "")
        ready = f"Reeltalk is ready at {url}/ with the model {info.name} ({size}). Ctrl-C stops it."
        self._console.print(ready, highlight=False, soft_wrap=True)
        example = _EXAMPLE.format(url=url, clip=SAMPLE)
        if await self._is_open(service):
            if not is_loopback(self._host):
                _log.warning("open_to_the_network", host=self._host, advice="nobody has to prove who they are")
        else:
            example = example.replace("curl ", 'curl -H "Authorization: Bearer $KEY" ')
        self._console.print(example, highlight=False, markup=False, soft_wrap=True)

    @staticmethod
    async def _is_open(service: Service) -> bool:
        try:
            return await service.authentication.is_open()
        except Unavailable:  # then nobody is let in
            return False


def serve(settings: Settings, *, console: Console) -> int:
    """Run a replica until it is told to stop; returns the exit status."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # uvicorn passes it on when it has shut down in order
    try:
        with _redis(settings, console) as url:
            server = ReeltalkServer(settings, redis_url=url, console=console)
            try:
                server.run()
            finally:
                _take_no_more_signals()
    except KeyboardInterrupt:
        return 0
    except RedisServerError as error:
        console.print(str(error), style="red", highlight=False, soft_wrap=True)
        return 1
    if server.problem is not None:
        console.print(f"reeltalk: {server.problem}", style="red", highlight=False, markup=False, soft_wrap=True)
    return 0 if server.started and server.problem is None else 1


def _take_no_more_signals() -> None:
    """What is left is ending Redis, in bounded time: another Ctrl-C would only print a traceback."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


@contextlib.contextmanager
def _redis(settings: Settings, console: Console) -> Iterator[str]:
    """The URL of the Redis to use: the operator's, or one that runs as long as this block."""
    if settings.redis_url is not None:
        yield settings.redis_url.get_secret_value()
        return
    console.print("[dim]Starting Redis …[/dim]")
    with embedded_redis(settings.data_dir) as url:
        yield url

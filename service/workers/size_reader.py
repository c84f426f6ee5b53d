"""Reads the sizes of checkpoints from their files without blocking the event loop. No torch."""

import asyncio
import contextlib
import threading
from dataclasses import dataclass
from pathlib import Path

from model.footprint import Footprint, UnreadableCheckpoint, checkpoint_footprint
from model.weight_bits import Quantization
from service.errors import Unavailable

_TIMEOUT = 10.0
_MAX_THREADS = 4


@dataclass(frozen=True, kw_only=True, slots=True)
class LoadedForm:
    """A checkpoint, and the form in which a worker loads it; see `checkpoint_footprint`."""

    folder: Path
    value_bytes: int
    kv_value_bytes: int
    quantization: Quantization | None


class SizeReader:
    """Reads sizes, each in a thread of its own.

    A file system over a network can stall a thread for hours. Such a thread ends with the process: one of the event
    loop's executor would delay the end of the service. No more than `_MAX_THREADS` exist at a time.
    """

    def __init__(self, *, timeout: float = _TIMEOUT) -> None:
        self._timeout = timeout
        self._num_threads = 0

    async def read(self, form: LoadedForm) -> Footprint | UnreadableCheckpoint:
        """Read the sizes of a checkpoint; returns the error of one that cannot be read.

        Raises:
            Unavailable: its files cannot be read in time, or those of too many others could not.
        """
        if self._num_threads >= _MAX_THREADS:
            message = f"{self._num_threads} checkpoints are being read already; try again in a moment."
            raise Unavailable("model_unavailable", message)
        loop = asyncio.get_running_loop()
        result: asyncio.Future[Footprint | UnreadableCheckpoint | Exception] = loop.create_future()
        self._num_threads += 1
        threading.Thread(target=self._run, args=(form, loop, result), name="sizes of a checkpoint", daemon=True).start()
        try:
            async with asyncio.timeout(self._timeout):
                found = await result
        except TimeoutError:
            message = f"The files in {form.folder} could not be read within {self._timeout:g} seconds."
            raise Unavailable("model_unavailable", message) from None
        if isinstance(found, Footprint | UnreadableCheckpoint):
            return found
        raise found

    def _run(
        self,
        form: LoadedForm,
        loop: asyncio.AbstractEventLoop,
        result: "asyncio.Future[Footprint | UnreadableCheckpoint | Exception]",
    ) -> None:
        found: Footprint | UnreadableCheckpoint | Exception
        try:
            found = checkpoint_footprint(
                form.folder,
                value_bytes=form.value_bytes,
                kv_value_bytes=form.kv_value_bytes,
                quantization=form.quantization,
            )
        except Exception as error:  # noqa: BLE001  the reader raises it
            found = error
        with contextlib.suppress(RuntimeError):  # the loop has ended
            loop.call_soon_threadsafe(self._end, found, result)

    def _end(
        self,
        found: Footprint | UnreadableCheckpoint | Exception,
        result: "asyncio.Future[Footprint | UnreadableCheckpoint | Exception]",
    ) -> None:
        self._num_threads -= 1
        if not result.done():
            result.set_result(found)

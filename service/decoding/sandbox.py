"""The sandbox of a decode child: which of its layers work on this machine."""

import asyncio
import json
from dataclasses import dataclass

from service.decoding.child_process import kill_group, start_module

PROBE_TIMEOUT = 30.0
"""Seconds for probing the sandbox, which takes about 0.1 s."""


class SandboxUnavailable(Exception):
    """The operator requires the seccomp filter, and it does not work on this machine."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Sandbox:
    """The layers around a decode child beyond resource limits and a session of its own."""

    seccomp: bool = False
    """The child, once it has its file, can open, connect, start or signal nothing (`service.decoding.seccomp`)."""
    network_namespace: bool = False
    """The child has a network namespace of its own, without devices."""


async def probe_sandbox() -> Sandbox:
    """Try the sandbox in a separate process; a layer that cannot be tried counts as missing."""
    try:
        async with asyncio.timeout(PROBE_TIMEOUT):
            process = await start_module(
                "service.decoding.seccomp", stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE
            )
            try:
                output, _ = await process.communicate()
            finally:
                kill_group(process)
        layers = json.loads(output)
        return Sandbox(seccomp=layers["seccomp"] is True, network_namespace=layers["network_namespace"] is True)
    except (OSError, TimeoutError, ValueError, KeyError):
        return Sandbox()

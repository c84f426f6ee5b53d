"""Fetches a video by URL for a stranger: from hosts the operator named, at public addresses, within bounds.

A name is looked up once, every address is checked, and the connection goes to the address that was checked, so a
name cannot change its mind in between; TLS and the `Host` header keep the name. A redirect is a new URL and passes
everything anew. No proxy, cookie or credential is taken from anywhere. It knows nothing of stores and uploads.
"""

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from urllib.parse import unquote

import httpcore2
import httpx2

from service.errors import Forbidden, InvalidRequest, TooLarge, UnsupportedMedia
from service.settings import Settings
from service.videos.receiving import UploadBody

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network
Resolve = Callable[[str, int], Awaitable[Sequence[Address]]]

MAX_URL = 2048
MAX_REDIRECTS = 3
_CONNECT_TIMEOUT = 10.0
_REDIRECTS = {301, 302, 303, 307, 308}
_PORTS = {"https": 443, "http": 80}
_UNTYPED = {"", "application/octet-stream", "binary/octet-stream", "application/mp4"}

_INNER = tuple(
    ip_network(text)
    for text in (
        "168.63.129.16/32",  # a cloud's own services, at an address that looks public
        "192.0.0.0/24",  # IANA's special purposes, another cloud's metadata among them
        "192.88.99.0/24",  # relays of 6to4
        "2001::/23",  # Teredo and other experiments
        "2002::/16",  # 6to4: an IPv4 address in disguise
        "fec0::/10",  # site-local, of old
    )
)
"""Not for strangers either, though `ipaddress` calls them global."""
_NAT64 = IPv6Network("64:ff9b::/96")


@dataclass(frozen=True, kw_only=True, slots=True)
class FetchPolicy:
    """What may be fetched, and what it may cost. Sizes in bytes, times in seconds."""

    hosts: tuple[str, ...] = ()
    """`name`, `*.name` (any name below it) or `*`, each with `:port` if that is not the scheme's; none: no fetching."""
    networks: tuple[Network, ...] = ()
    """Addresses that may be gone to although they are not public."""
    http: bool = False
    """Also without TLS."""
    max_bytes: int = 2 << 30
    timeout: float = 120.0
    """For all of it, redirects and the last byte included."""


def fetch_policy(settings: Settings) -> FetchPolicy:
    """The policy that the settings describe."""
    return FetchPolicy(
        hosts=settings.fetch_hosts,
        networks=settings.fetch_networks,
        http=settings.fetch_http,
        max_bytes=settings.max_upload_bytes,
        timeout=settings.fetch_timeout,
    )


class Fetcher:
    """Opens URLs under a policy."""

    def __init__(
        self, policy: FetchPolicy, *, resolve: Resolve | None = None, ssl_context: ssl.SSLContext | None = None
    ) -> None:
        self._policy = policy
        self._resolve = resolve or look_up
        self._ssl_context = ssl_context

    @asynccontextmanager
    async def open(self, url: str) -> AsyncIterator[UploadBody]:
        """The file behind `url`; the time it may take ends with the block.

        Raises:
            Forbidden: `fetch_disabled`, `url_not_allowed`.
            InvalidRequest: `invalid_url`, `too_many_redirects`, `fetch_failed`, `fetch_timeout`.
            TooLarge: it announces more bytes than are taken.
            UnsupportedMedia: it says that it is something else than a video.
        """
        if not self._policy.hosts:
            raise Forbidden("fetch_disabled", "This server fetches no URLs; upload the file instead.", param="url")
        try:
            async with asyncio.timeout(self._policy.timeout), self._pool() as pool:
                target = self._checked(url)
                for _ in range(MAX_REDIRECTS + 1):
                    async with self._response(pool, target) as response:
                        if response.status not in _REDIRECTS:
                            yield self._file(target, response)
                            return
                        target = self._checked(_location(target, response))
                raise InvalidRequest("too_many_redirects", "The URL leads from one to another and on.", param="url")
        except TimeoutError:
            raise InvalidRequest(
                "fetch_timeout", f"Fetching the URL took longer than {self._policy.timeout:g} seconds.", param="url"
            ) from None

    def _pool(self) -> httpcore2.AsyncConnectionPool:
        return httpcore2.AsyncConnectionPool(
            ssl_context=self._ssl_context or httpcore2.default_ssl_context(),
            max_keepalive_connections=0,  # every request looks its host up and checks it
            network_backend=_CheckedBackend(self._addresses),
        )

    @asynccontextmanager
    async def _response(
        self, pool: httpcore2.AsyncConnectionPool, url: httpx2.URL
    ) -> AsyncIterator[httpcore2.Response]:
        host = url.netloc.decode("ascii")
        headers = {"Host": host, "Accept": "video/*, */*;q=0.1", "Accept-Encoding": "identity"}
        timeouts = {"connect": _CONNECT_TIMEOUT, "read": None, "write": _CONNECT_TIMEOUT, "pool": _CONNECT_TIMEOUT}
        try:
            async with pool.stream(
                "GET",
                httpcore2.URL(scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path),
                headers=list(headers.items()),
                extensions={"timeout": timeouts},
            ) as response:
                yield response
        except (httpcore2.NetworkError, httpcore2.ProtocolError, httpcore2.TimeoutException):
            raise _failed("The URL's server could not be reached, or broke off.") from None

    def _checked(self, text: str) -> httpx2.URL:
        """The URL, if it is one that may be asked for."""
        try:
            url = httpx2.URL(text)
        except (httpx2.InvalidURL, ValueError):
            raise _invalid("The URL is malformed.") from None
        if url.scheme != "https" and not (url.scheme == "http" and self._policy.http):
            raise _invalid("The URL must begin with https://.")
        if len(text) > MAX_URL or not url.host:
            raise _invalid(f"The URL must name a host and have at most {MAX_URL} characters.")
        if url.userinfo:
            raise _invalid("The URL must hold no user name and no password.")
        host, port = url.raw_host.decode("ascii").rstrip(".").lower(), url.port or _PORTS[url.scheme]
        if not any(_matches(entry, host, port, _PORTS[url.scheme]) for entry in self._policy.hosts):
            raise _not_allowed()
        return url

    async def _addresses(self, host: str, port: int) -> list[str]:
        """Where to connect for `host`: every address of it that may be gone to, or a refusal if one may not."""
        found = await self._resolve(host, port)
        # One inner address among public ones is how a name is made to change its mind.
        if not found or not all(self._may_go_to(address) for address in found):
            raise _not_allowed()
        return [str(address) for address in found]

    def _may_go_to(self, address: Address) -> bool:
        plain = _plain(address)
        return is_public(plain) or any(plain in network for network in self._policy.networks)

    def _file(self, url: httpx2.URL, response: httpcore2.Response) -> UploadBody:
        headers = httpx2.Headers(response.headers)
        if response.status != 200:
            raise _failed(f"The URL's server answered with status {response.status}.")
        if headers.get("content-encoding", "identity").strip().lower() != "identity":
            raise _failed("The URL's server compresses the file, though it was asked not to.")
        length = headers.get("content-length", "")
        if length.isdecimal() and int(length) > self._policy.max_bytes:
            raise TooLarge("upload_too_large", f"A video may have at most {self._policy.max_bytes} bytes.", param="url")
        kind = headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind not in _UNTYPED and not kind.startswith("video/"):
            raise UnsupportedMedia("unsupported_media_type", "What the URL leads to is not a video.", param="url")
        return UploadBody(
            filename=unquote(url.path.rpartition("/")[2]),
            content_type=kind if kind.startswith("video/") else "application/octet-stream",
            content_length=int(length) if length.isdecimal() else None,
            chunks=response.aiter_stream(),
        )


class _CheckedBackend(httpcore2.AsyncNetworkBackend):
    """Connects to addresses that passed a check, and to nothing by name."""

    def __init__(self, addresses: Callable[[str, int], Awaitable[list[str]]]) -> None:
        self._addresses = addresses
        self._backend = httpcore2.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore2.SOCKET_OPTION] | None = None,
    ) -> httpcore2.AsyncNetworkStream:
        """A connection to the first of the host's addresses that takes one."""
        failure: httpcore2.NetworkError | httpcore2.TimeoutException | None = None
        for address in await self._addresses(host, port):
            try:
                return await self._backend.connect_tcp(address, port, timeout, local_address, socket_options)
            except (httpcore2.NetworkError, httpcore2.TimeoutException) as error:
                failure = error
        raise failure or httpcore2.ConnectError

    async def sleep(self, seconds: float) -> None:
        """Wait."""
        await asyncio.sleep(seconds)


async def look_up(host: str, port: int) -> list[Address]:
    """The addresses of a name; none if it has none."""
    try:
        found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        return []
    return [ip_address(str(entry[4][0])) for entry in found]


def is_public(address: Address) -> bool:
    """Whether an address is one of the public internet's, also by what it hides: mapped and translated IPv4."""
    address = _plain(address)
    return (
        address.is_global
        and not address.is_multicast
        and not address.is_reserved
        and not any(address in network for network in _INNER)
    )


def _plain(address: Address) -> Address:
    """The IPv4 address that an IPv6 address stands for, or the address itself."""
    if isinstance(address, IPv6Address):
        if address.ipv4_mapped is not None:
            return address.ipv4_mapped
        if address in _NAT64:
            return IPv4Address(int(address) & 0xFFFFFFFF)
    return address


def _matches(entry: str, host: str, port: int, usual_port: int) -> bool:
    """Whether an entry of the list of hosts allows this host at this port."""
    name, _, said = entry.lower().partition(":")
    if str(port) != (said or str(usual_port)):
        return False
    return name in {"*", host} or (name.startswith("*.") and host.endswith(name[1:]))


def _location(url: httpx2.URL, response: httpcore2.Response) -> str:
    location = httpx2.Headers(response.headers).get("location")
    if location is None:
        raise _failed(f"The URL's server answered with status {response.status}.")
    try:
        target = str(url.join(location))
    except (httpx2.InvalidURL, ValueError):
        raise _invalid("The URL leads to one that is malformed.") from None
    return target.partition("#")[0]


def _invalid(message: str) -> InvalidRequest:
    return InvalidRequest("invalid_url", message, param="url")


def _failed(message: str) -> InvalidRequest:
    return InvalidRequest("fetch_failed", message, param="url")


def _not_allowed() -> Forbidden:
    """One refusal for every reason: it must not tell which names and addresses there are inside."""
    return Forbidden("url_not_allowed", "This server may not fetch from the URL's host.", param="url")

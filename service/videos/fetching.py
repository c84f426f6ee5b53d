"""Fetches a video from a URL that a client names: from allowed hosts, at public addresses, within limits.

A name is resolved once, every address is checked, and the connection goes to a checked address, so that a name
cannot resolve to another address in between (DNS rebinding). TLS and the `Host` header use the name. Every redirect
is checked like a new URL. No proxy, cookie or credential is used. This module has no access to stores.
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

_NOT_PUBLIC = tuple(
    ip_network(text)
    for text in (
        "168.63.129.16/32",  # the services of a cloud (Azure), at an address that looks public
        "192.0.0.0/24",  # IANA's special purposes, among them another cloud's metadata service
        "192.88.99.0/24",  # 6to4 relays
        "2001::/23",  # Teredo and other experiments
        "2002::/16",  # 6to4: the address contains an IPv4 address
        "fec0::/10",  # site-local, deprecated
    )
)
"""Networks that count as internal, although `ipaddress` calls them global."""
_NAT64 = IPv6Network("64:ff9b::/96")


@dataclass(frozen=True, kw_only=True, slots=True)
class FetchPolicy:
    """The URLs that may be fetched, and the limits. Sizes in bytes, times in seconds."""

    hosts: tuple[str, ...] = ()
    """`name`, `*.name` (its subdomains) or `*`, each with `:port` unless it is the default; empty: no fetching."""
    networks: tuple[Network, ...] = ()
    """Networks whose addresses are allowed although they are not public."""
    http: bool = False
    """Whether http:// URLs are allowed, too."""
    max_bytes: int = 2 << 30
    timeout: float = 120.0
    """For the whole fetch, from the first redirect to the last byte."""


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
    """Fetches the URLs that a policy allows."""

    def __init__(
        self, policy: FetchPolicy, *, resolve: Resolve | None = None, ssl_context: ssl.SSLContext | None = None
    ) -> None:
        self._policy = policy
        self._resolve = resolve or resolve_host
        self._ssl_context = ssl_context

    @asynccontextmanager
    async def open(self, url: str) -> AsyncIterator[UploadBody]:
        """Request `url` and yield its file; the timeout covers the whole block.

        Raises:
            Forbidden: `fetch_disabled`, `url_not_allowed`.
            InvalidRequest: `invalid_url`, `too_many_redirects`, `fetch_failed`, `fetch_timeout`.
            TooLarge: the announced length exceeds the limit.
            UnsupportedMedia: the content type is not a video.
        """
        if not self._policy.hosts:
            raise Forbidden("fetch_disabled", "This server does not fetch URLs; upload the file instead.", param="url")
        try:
            async with asyncio.timeout(self._policy.timeout), self._pool() as pool:
                target = self._checked(url)
                for _ in range(MAX_REDIRECTS + 1):
                    async with self._response(pool, target) as response:
                        if response.status not in _REDIRECTS:
                            yield self._file(target, response)
                            return
                        target = self._checked(_location(target, response))
                raise InvalidRequest("too_many_redirects", "The URL redirects too often.", param="url")
        except TimeoutError:
            raise InvalidRequest(
                "fetch_timeout", f"Fetching the URL took longer than {self._policy.timeout:g} seconds.", param="url"
            ) from None

    def _pool(self) -> httpcore2.AsyncConnectionPool:
        return httpcore2.AsyncConnectionPool(
            ssl_context=self._ssl_context or httpcore2.default_ssl_context(),
            max_keepalive_connections=0,  # every request resolves and checks its host
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
            raise _failed("The URL's server could not be reached, or closed the connection.") from None

    def _checked(self, text: str) -> httpx2.URL:
        """Return the parsed URL if the policy allows it."""
        try:
            url = httpx2.URL(text)
        except (httpx2.InvalidURL, ValueError):
            raise _invalid("The URL is malformed.") from None
        if url.scheme != "https" and not (url.scheme == "http" and self._policy.http):
            raise _invalid("The URL must begin with https://.")
        if len(text) > MAX_URL or not url.host:
            raise _invalid(f"The URL must name a host and have at most {MAX_URL} characters.")
        if url.userinfo:
            raise _invalid("The URL must not contain a user name or a password.")
        host, port = url.raw_host.decode("ascii").rstrip(".").lower(), url.port or _PORTS[url.scheme]
        if not any(_matches(entry, host, port, _PORTS[url.scheme]) for entry in self._policy.hosts):
            raise _not_allowed()
        return url

    async def _addresses(self, host: str, port: int) -> list[str]:
        """Return the addresses of `host`; refuses the host if one of them is not allowed."""
        found = await self._resolve(host, port)
        # A name with one internal address among public ones is an attempt at DNS rebinding.
        if not found or not all(self._is_allowed(address) for address in found):
            raise _not_allowed()
        return [str(address) for address in found]

    def _is_allowed(self, address: Address) -> bool:
        unmapped = _unmapped(address)
        return is_public(unmapped) or any(unmapped in network for network in self._policy.networks)

    def _file(self, url: httpx2.URL, response: httpcore2.Response) -> UploadBody:
        headers = httpx2.Headers(response.headers)
        if response.status != 200:
            raise _failed(f"The URL's server responded with status {response.status}.")
        if headers.get("content-encoding", "identity").strip().lower() != "identity":
            raise _failed("The URL's server compresses the file, which the request does not accept.")
        length = headers.get("content-length", "")
        if length.isdecimal() and int(length) > self._policy.max_bytes:
            raise TooLarge("upload_too_large", f"A video may have at most {self._policy.max_bytes} bytes.", param="url")
        kind = headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind not in _UNTYPED and not kind.startswith("video/"):
            raise UnsupportedMedia("unsupported_media_type", "The URL's content type is not a video.", param="url")
        return UploadBody(
            filename=unquote(url.path.rpartition("/")[2]),
            content_type=kind if kind.startswith("video/") else "application/octet-stream",
            content_length=int(length) if length.isdecimal() else None,
            chunks=response.aiter_stream(),
        )


class _CheckedBackend(httpcore2.AsyncNetworkBackend):
    """Connects to checked addresses only, never by name."""

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
        """Connect to the first of the host's addresses that accepts the connection."""
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


async def resolve_host(host: str, port: int) -> list[Address]:
    """Resolve a name to its addresses; to none if that fails."""
    try:
        found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        return []
    return [ip_address(str(entry[4][0])) for entry in found]


def is_public(address: Address) -> bool:
    """Whether an address is on the public internet; for a mapped or translated IPv4 address, whether that one is."""
    address = _unmapped(address)
    return (
        address.is_global
        and not address.is_multicast
        and not address.is_reserved
        and not any(address in network for network in _NOT_PUBLIC)
    )


def _unmapped(address: Address) -> Address:
    """Return the IPv4 address that an IPv6 address maps or translates, or the address itself."""
    if isinstance(address, IPv6Address):
        if address.ipv4_mapped is not None:
            return address.ipv4_mapped
        if address in _NAT64:
            return IPv4Address(int(address) & 0xFFFFFFFF)
    return address


def _matches(entry: str, host: str, port: int, default_port: int) -> bool:
    """Whether an entry of the list of hosts allows this host and port."""
    name, _, entry_port = entry.lower().partition(":")
    if str(port) != (entry_port or str(default_port)):
        return False
    return name in {"*", host} or (name.startswith("*.") and host.endswith(name[1:]))


def _location(url: httpx2.URL, response: httpcore2.Response) -> str:
    location = httpx2.Headers(response.headers).get("location")
    if location is None:
        raise _failed(f"The URL's server responded with status {response.status}.")
    try:
        target = str(url.join(location))
    except (httpx2.InvalidURL, ValueError):
        raise _invalid("The URL redirects to one that is malformed.") from None
    return target.partition("#")[0]


def _invalid(message: str) -> InvalidRequest:
    return InvalidRequest("invalid_url", message, param="url")


def _failed(message: str) -> InvalidRequest:
    return InvalidRequest("fetch_failed", message, param="url")


def _not_allowed() -> Forbidden:
    """The same refusal for every reason: it must not reveal which internal names and addresses exist."""
    return Forbidden("url_not_allowed", "This server may not fetch from the URL's host.", param="url")

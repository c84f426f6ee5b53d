"""A URL is fetched from an allowed host, at a checked address, within limits; or it is refused."""

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from ipaddress import ip_address, ip_network

import pytest
import trustme

from service.errors import ServiceError
from service.videos.fetching import Address, Fetcher, FetchPolicy, is_public

LOOPBACK = (ip_network("127.0.0.0/8"),)
FILE = b"the bytes of a film" * 1000

Answer = Callable[[asyncio.StreamWriter, str], Awaitable[None]]


class Names:
    """A resolver with one answer for each look-up; the last answer is repeated."""

    def __init__(self, *answers: list[str]) -> None:
        self._answers = list(answers)
        self.asked: list[str] = []

    async def __call__(self, host: str, _: int) -> list[Address]:
        self.asked.append(host)
        answer = self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]
        return [ip_address(text) for text in answer]


class Server:
    """A minimal HTTP server that records its requests and responds with `answer`."""

    def __init__(self, answer: Answer) -> None:
        self._answer = answer
        self.requests: list[str] = []
        self.port = 0

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            request = (await reader.readuntil(b"\r\n\r\n")).decode()
            self.requests.append(request)
            await self._answer(writer, request.split(" ")[1])
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()


@asynccontextmanager
async def serving(
    answer: Answer, *, tls: ssl.SSLContext | None = None, host: str = "127.0.0.1"
) -> AsyncIterator[Server]:
    server = Server(answer)
    listener = await asyncio.start_server(server.handle, host, 0, ssl=tls)
    server.port = listener.sockets[0].getsockname()[1]
    try:
        yield server
    finally:
        listener.close()


def reply(*headers: str, status: str = "200 OK", body: bytes = FILE) -> Answer:
    async def answer(writer: asyncio.StreamWriter, path: str) -> None:
        lines = [f"HTTP/1.1 {status}", "Connection: close", *headers]
        writer.write("".join(f"{line}\r\n" for line in [*lines, ""]).encode() + body)
        await writer.drain()

    return answer


def redirect(*targets: str) -> Answer:
    """Redirect request n to target n; further requests get the file."""
    left = list(targets)

    async def answer(writer: asyncio.StreamWriter, path: str) -> None:
        if left:
            await reply(f"Location: {left.pop(0)}", status="302 Found", body=b"")(writer, path)
        else:
            await reply("Content-Type: video/mp4")(writer, path)

    return answer


def policy(*hosts: str, **fields: object) -> FetchPolicy:
    return FetchPolicy(**{"hosts": hosts or ("*",), "networks": LOOPBACK, "http": True, "timeout": 5.0, **fields})  # type: ignore[arg-type]


async def fetched(fetcher: Fetcher, url: str) -> tuple[str | None, str, bytes]:
    async with fetcher.open(url) as file:
        body = b"".join([chunk async for chunk in file.chunks])
        return file.filename, file.content_type, body


async def refusal(fetcher: Fetcher, url: str) -> str:
    with pytest.raises(ServiceError) as refused:
        await fetched(fetcher, url)
    assert refused.value.param == "url"
    assert refused.value.message.endswith(".")
    assert refused.value.status < 500
    return refused.value.code


async def test_nothing_is_fetched_unless_hosts_are_allowed() -> None:
    names = Names(["93.184.215.14"])
    assert await refusal(Fetcher(FetchPolicy(), resolve=names), "https://video.test/a.mp4") == "fetch_disabled"
    assert names.asked == []


@pytest.mark.parametrize("kind", ["video/mp4; codecs=avc1", "application/octet-stream", ""])
async def test_a_file_is_fetched_over_tls_under_the_name_in_the_url(kind: str) -> None:
    authority, seen = trustme.CA(), []
    theirs, ours = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH), ssl.create_default_context()
    authority.issue_cert("video.test").configure_cert(theirs)
    authority.configure_trust(ours)
    theirs.sni_callback = lambda _, name, __: seen.append(name)
    answer = reply(*([f"Content-Type: {kind}"] if kind else []), f"Content-Length: {len(FILE)}")
    async with serving(answer, tls=theirs) as server:
        names = Names(["127.0.0.1"])
        fetcher = Fetcher(policy(f"video.test:{server.port}", http=False), resolve=names, ssl_context=ours)
        file = await fetched(fetcher, f"https://video.test:{server.port}/films/a%20b.mp4?token=x#part")
    assert file == ("a b.mp4", "video/mp4" if kind.startswith("video") else "application/octet-stream", FILE)
    assert seen == ["video.test"]
    [request] = server.requests
    assert request.startswith("GET /films/a%20b.mp4?token=x HTTP/1.1\r\n")
    assert f"\r\nHost: video.test:{server.port}\r\n" in request
    assert "cookie" not in request.lower()
    assert "authorization" not in request.lower()


async def test_a_certificate_for_another_name_is_refused() -> None:
    authority = trustme.CA()
    theirs, ours = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH), ssl.create_default_context()
    authority.issue_cert("other.test").configure_cert(theirs)
    authority.configure_trust(ours)
    async with serving(reply(), tls=theirs) as server:
        fetcher = Fetcher(policy("*:" + str(server.port)), resolve=Names(["127.0.0.1"]), ssl_context=ours)
        assert await refusal(fetcher, f"https://video.test:{server.port}/a.mp4") == "fetch_failed"
    assert server.requests == []


@pytest.mark.parametrize(
    ("url", "code"),
    [
        ("http://video.test/a.mp4", "invalid_url"),
        ("ftp://video.test/a.mp4", "invalid_url"),
        ("file:///etc/passwd", "invalid_url"),
        ("data:video/mp4;base64,AAAA", "invalid_url"),
        ("//video.test/a.mp4", "invalid_url"),
        ("/etc/passwd", "invalid_url"),
        ("https://", "invalid_url"),
        ("https:///a.mp4", "invalid_url"),
        ("https://user:word@video.test/a.mp4", "invalid_url"),
        ("https://video.test@evil.test/a.mp4", "invalid_url"),
        ("https://video.test:99999/a.mp4", "invalid_url"),
        ("https://video.test/a\nHost: evil.test", "invalid_url"),
        ("https://vid\x00eo.test/a.mp4", "invalid_url"),
        ("https://[::1/a.mp4", "invalid_url"),
        ("https://video.test/" + "a" * 2100, "invalid_url"),
        ("https://evil.test/a.mp4", "url_not_allowed"),
        ("https://video.test.evil.test/a.mp4", "url_not_allowed"),
        ("https://evilvideo.test/a.mp4", "url_not_allowed"),
        ("https://video.test:22/a.mp4", "url_not_allowed"),
        ("https://parts.test/a.mp4", "url_not_allowed"),
        ("https://127.0.0.1/a.mp4", "url_not_allowed"),
        ("https://evil.test#@video.test/a.mp4", "url_not_allowed"),
        ("https://evil.test\\@video.test/a.mp4", "invalid_url"),
    ],
)
async def test_a_url_that_is_not_allowed_is_refused_without_a_look_up(url: str, code: str) -> None:
    names = Names(["127.0.0.1"])
    fetcher = Fetcher(policy("video.test", "*.parts.test", http=False), resolve=names)
    assert await refusal(fetcher, url) in {code, "url_not_allowed"}
    assert names.asked == []


INTERNAL = [
    *("127.0.0.1", "127.8.8.8", "0.0.0.1", "10.0.0.1", "172.16.0.1", "192.168.1.1", "100.64.0.1", "100.100.100.200"),
    *("169.254.169.254", "168.63.129.16", "192.0.0.192", "192.0.2.1", "198.18.0.1", "224.0.0.1", "239.1.1.1"),
    *("240.0.0.1", "255.255.255.255", "192.88.99.1"),
    *("::", "::1", "::127.0.0.1", "::ffff:127.0.0.1", "::ffff:10.0.0.1", "::ffff:169.254.169.254"),
    *("64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe", "64:ff9b:1::1", "2002:7f00:1::", "2001:0:1::1", "2001:db8::1"),
    *("fe80::1", "fe80::1%eth0", "fec0::1", "fc00::1", "fd00:ec2::254", "ff02::1", "ff0e::1"),
]


@pytest.mark.parametrize("address", INTERNAL)
async def test_a_name_with_an_internal_address_is_refused(address: str) -> None:
    assert not is_public(ip_address(address))
    for answer in ([address], ["93.184.215.14", address], [address, "93.184.215.14"]):
        fetcher = Fetcher(policy("video.test", networks=()), resolve=Names(answer))
        assert await refusal(fetcher, "https://video.test/a.mp4") == "url_not_allowed"


@pytest.mark.parametrize(
    "address", ["93.184.215.14", "8.8.8.8", "2606:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808"]
)
def test_public_addresses_are_public(address: str) -> None:
    assert is_public(ip_address(address))


@pytest.mark.parametrize(
    "host", ["localhost", "127.1", "0x7f.1", "2130706433", "0177.0.0.1", "[::1]", "[::ffff:127.0.0.1]", "127.0.0.1."]
)
async def test_no_name_of_loopback_gets_a_connection(host: str) -> None:
    async with serving(reply()) as server:
        fetcher = Fetcher(policy(f"*:{server.port}", networks=()))
        code = await refusal(fetcher, f"http://{host}:{server.port}/a.mp4")
    assert code in {"url_not_allowed", "invalid_url"}
    assert server.requests == []


async def test_a_name_is_resolved_once_and_connected_to_at_the_checked_address() -> None:
    async with serving(reply("Content-Type: video/mp4")) as good, serving(reply(), host="127.0.0.2") as evil:
        names = Names(["127.0.0.1"], ["127.0.0.2"])
        fetcher = Fetcher(policy(f"*:{good.port}", f"*:{evil.port}"), resolve=names)
        _, _, body = await fetched(fetcher, f"http://rebinding.test:{good.port}/a.mp4")
    assert body == FILE
    assert names.asked == ["rebinding.test"]
    assert evil.requests == []


async def test_every_redirect_is_checked() -> None:
    async with serving(reply()) as inner:
        for target in (
            f"http://inner.test:{inner.port}/a.mp4",
            f"//inner.test:{inner.port}/",
            "ftp://video.test/",
            "file:///x",
        ):
            async with serving(redirect(target)) as server:
                fetcher = Fetcher(policy(f"video.test:{server.port}"), resolve=Names(["127.0.0.1"]))
                code = await refusal(fetcher, f"http://video.test:{server.port}/a.mp4")
                assert code in {"url_not_allowed", "invalid_url"}
    assert inner.requests == []


async def test_a_redirect_to_an_internal_address_is_refused() -> None:
    async with serving(redirect("/second")) as server:
        names = Names(["127.0.0.1"], ["169.254.169.254"])  # the same name, looked up again
        fetcher = Fetcher(policy(f"video.test:{server.port}"), resolve=names)
        assert await refusal(fetcher, f"http://video.test:{server.port}/a.mp4") == "url_not_allowed"
    assert len(server.requests) == 1


async def test_redirects_are_followed_and_counted() -> None:
    for steps, code in ((3, None), (4, "too_many_redirects")):
        async with serving(redirect(*(f"/{step}.mp4" for step in range(steps)))) as server:
            fetcher = Fetcher(policy(f"video.test:{server.port}"), resolve=Names(["127.0.0.1"]))
            url = f"http://video.test:{server.port}/a.mp4"
            if code is None:
                assert await fetched(fetcher, url) == ("2.mp4", "video/mp4", FILE)
            else:
                assert await refusal(fetcher, url) == code
            assert len(server.requests) == 4


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        (reply(status="404 Not Found"), "fetch_failed"),
        (reply(status="206 Partial Content"), "fetch_failed"),
        (reply(status="302 Found"), "fetch_failed"),
        (reply("Content-Type: text/html"), "unsupported_media_type"),
        (reply("Content-Type: multipart/form-data; boundary=x"), "unsupported_media_type"),
        (reply("Content-Type: video/mp4", "Content-Encoding: gzip"), "fetch_failed"),
        (reply("Content-Length: 99999999999"), "upload_too_large"),
        (reply("Content-Length: 99999"), "fetch_failed"),
        (reply("X: " + "x" * 300_000), "fetch_failed"),
        (reply(*(f"X-{n}: y" for n in range(20_000))), "fetch_failed"),
        (reply(status="999999 What"), "fetch_failed"),
        (reply("Location: http://[::1", status="301 Moved"), "invalid_url"),
    ],
)
async def test_a_response_that_is_no_video_is_refused(answer: Answer, code: str) -> None:
    async with serving(answer) as server:
        fetcher = Fetcher(policy(f"*:{server.port}", max_bytes=1_000_000), resolve=Names(["127.0.0.1"]))
        assert await refusal(fetcher, f"http://video.test:{server.port}/a.mp4") == code


async def test_a_server_that_sends_too_slowly_times_out() -> None:
    async def drip(writer: asyncio.StreamWriter, path: str) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: video/mp4\r\n")
        if path == "/body":
            writer.write(b"Content-Length: 1000\r\n\r\n")
        while True:
            writer.write(b"x" if path == "/body" else b"X: y\r\n")
            await writer.drain()
            await asyncio.sleep(0.05)

    async with serving(drip) as server:
        fetcher = Fetcher(policy(f"*:{server.port}", timeout=0.4), resolve=Names(["127.0.0.1"]))
        for path in ("body", "headers"):
            assert await refusal(fetcher, f"http://video.test:{server.port}/{path}") == "fetch_timeout"


async def test_a_refused_connection_is_reported() -> None:
    async with serving(reply()) as server:
        pass
    fetcher = Fetcher(policy(f"*:{server.port}"), resolve=Names(["127.0.0.1"]))
    assert await refusal(fetcher, f"http://video.test:{server.port}/a.mp4") == "fetch_failed"


async def test_no_proxy_of_the_environment_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    async with serving(reply()) as proxy, serving(reply("Content-Type: video/mp4")) as server:
        for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "HTTPS_PROXY"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.port}")
        fetcher = Fetcher(policy(f"*:{server.port}"), resolve=Names(["127.0.0.1"]))
        assert (await fetched(fetcher, f"http://video.test:{server.port}/a.mp4"))[2] == FILE
    assert proxy.requests == []

"""A body gives the same file however the network splits it, and an invalid one is refused with a code."""

import asyncio
import hashlib
from collections.abc import AsyncIterator, Iterable
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from service.errors import InvalidRequest, ServiceError, Stalled, TooLarge, UnsupportedMedia
from service.store.media import MediaStore
from service.videos.receiving import UploadBody, UploadHeader, check_headers, receive

BOUNDARY = "----b0undary"
FORM = f"multipart/form-data; boundary={BOUNDARY}"
NEARLY_BOUNDARIES = [b"\r\n", b"\r\n--", b"\n--", f"\r\n--{BOUNDARY[:-1]}".encode()]
same_folder = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)


def part(content: bytes, disposition: str = 'name="file"; filename="clip.mp4"', kind: str = "video/mp4") -> bytes:
    head = f"--{BOUNDARY}\r\nContent-Disposition: form-data; {disposition}\r\nContent-Type: {kind}\r\n\r\n"
    return head.encode() + content + b"\r\n"


def form(content: bytes, disposition: str = 'name="file"; filename="clip.mp4"', kind: str = "video/mp4") -> bytes:
    return part(content, disposition, kind) + f"--{BOUNDARY}--\r\n".encode()


def split(body: bytes, positions: Iterable[int]) -> list[bytes]:
    bounds = [0, *sorted(position % (len(body) + 1) for position in positions), len(body)]
    return [body[start:end] for start, end in pairwise(bounds)]


def received(
    folder: Path, chunks: list[bytes], *, content_type: str = FORM, filename: str | None = None, max_bytes: int = 10**6
) -> tuple[UploadHeader, str]:
    """Receive an upload; returns its header and the SHA-256 of the file."""

    async def body() -> AsyncIterator[bytes]:
        for chunk in chunks:
            yield chunk

    async def run() -> tuple[UploadHeader, str]:
        media = MediaStore(folder)
        media.open()
        async with media.spool() as spool:
            sent = UploadBody(chunks=body(), content_type=content_type, filename=filename)
            header = await receive(sent, spool, max_bytes=max_bytes, idle_timeout=30)
            sha256 = spool.sync()
            assert hashlib.sha256(spool.path.read_bytes()).hexdigest() == sha256
            return header, sha256

    return asyncio.run(run())


def announced(content_type: str, content_length: int | None = None) -> UploadBody:
    """Return a body without bytes, for tests of its headers."""

    async def nothing() -> AsyncIterator[bytes]:
        for _ in range(0):
            yield b""

    return UploadBody(chunks=nothing(), content_type=content_type, content_length=content_length)


@same_folder
@given(
    content=st.binary(min_size=1, max_size=200) | st.sampled_from(NEARLY_BOUNDARIES),
    positions=st.lists(st.integers(0, 1000), max_size=8),
)
def test_a_form_gives_the_same_file_however_split(tmp_path: Path, content: bytes, positions: list[int]) -> None:
    header, sha256 = received(tmp_path, split(form(content), positions))
    assert header == UploadHeader(filename="clip.mp4", content_type="video/mp4")
    assert sha256 == hashlib.sha256(content).hexdigest()


def test_a_form_gives_the_same_file_byte_by_byte(tmp_path: Path) -> None:
    content = bytes(range(256)) * 2
    body = form(content)
    _, sha256 = received(tmp_path, [body[i : i + 1] for i in range(len(body))])
    assert sha256 == hashlib.sha256(content).hexdigest()


@same_folder
@given(content=st.binary(min_size=1, max_size=200), positions=st.lists(st.integers(0, 1000), max_size=4))
def test_a_raw_body_gives_the_same_file_however_split(tmp_path: Path, content: bytes, positions: list[int]) -> None:
    chunks = split(content, positions)
    header, sha256 = received(tmp_path, chunks, content_type="video/webm; codecs=vp9", filename="a.webm")
    assert header == UploadHeader(filename="a.webm", content_type="video/webm")
    assert sha256 == hashlib.sha256(content).hexdigest()


@same_folder
@given(body=st.binary(max_size=300), kind=st.sampled_from([FORM, "multipart/form-data", "video/mp4"]))
def test_any_body_is_received_or_refused_with_a_code(tmp_path: Path, body: bytes, kind: str) -> None:
    try:
        received(tmp_path, [body], content_type=kind)
    except ServiceError as error:
        assert error.code in {"malformed_form", "missing_file", "empty_upload", "unknown_field", "duplicate_field"}
    assert list((tmp_path / "spool").iterdir()) == []


@given(sent=st.text(st.characters(max_codepoint=255), max_size=60))
def test_any_content_type_is_accepted_or_refused_with_a_code(sent: str) -> None:
    try:
        check_headers(announced(sent), max_bytes=1)
    except UnsupportedMedia as error:
        assert error.code == "unsupported_media_type"


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (form(b"x", 'name="film"; filename="a.mp4"'), "unknown_field"),
        (part(b"x") + form(b"y"), "duplicate_field"),
        (form(b""), "empty_upload"),
        (f"--{BOUNDARY}--\r\n".encode(), "missing_file"),
        (part(b"x"), "malformed_form"),
        (form(b"x")[:-8], "malformed_form"),
        (b"", "malformed_form"),
        (form(b"x", 'name="file"; filename="\xff"').replace("\xff".encode(), b"\xff"), "malformed_form"),
    ],
)
def test_a_form_that_is_not_one_file_is_refused_with_a_code(tmp_path: Path, body: bytes, code: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        received(tmp_path, [body])
    assert refused.value.code == code


@pytest.mark.parametrize("content_type", [FORM, "video/mp4"])
def test_the_size_limit_is_exact(tmp_path: Path, content_type: str) -> None:
    def chunks(content: bytes) -> list[bytes]:
        return split(form(content) if content_type == FORM else content, [30, 60])

    received(tmp_path, chunks(b"x" * 100), content_type=content_type, max_bytes=100)
    with pytest.raises(TooLarge):
        received(tmp_path, chunks(b"x" * 101), content_type=content_type, max_bytes=100)


@pytest.mark.parametrize("place", ["before", "after"])
def test_a_form_that_is_too_long_is_refused_wherever_its_bytes_are(tmp_path: Path, place: str) -> None:
    flood = [b"x" * 50_000] * 4
    chunks = [*flood, form(b"x")] if place == "before" else [form(b"x"), *flood]
    with pytest.raises(TooLarge):
        received(tmp_path, chunks, max_bytes=1000)


def test_headers_that_cannot_be_accepted_are_refused_before_the_body() -> None:
    with pytest.raises(TooLarge):
        check_headers(announced(FORM, 10**6), max_bytes=1000)
    check_headers(announced(FORM, 1200), max_bytes=1000)  # a form has more bytes than its file
    for kind in ("", "text/html", "image/png", "application/json", "videos/mp4"):
        with pytest.raises(UnsupportedMedia):
            check_headers(announced(kind), max_bytes=1000)


@pytest.mark.parametrize(
    ("sent", "shown"),
    [
        ("../../etc/passwd", "passwd"),
        ("C:\\films\\a.mp4", "a.mp4"),
        ("a\x00b.mp4", "b.mp4"),
        ("..", "video"),
        ("", "video"),
        (None, "video"),
        ("Köln.mp4", "Köln.mp4"),
        ("x" * 300, "x" * 255),
    ],
)
def test_a_filename_is_sanitised(tmp_path: Path, sent: str | None, shown: str) -> None:
    header, _ = received(tmp_path, [b"x"], content_type="video/mp4", filename=sent)
    assert header.filename == shown


@pytest.mark.parametrize(
    ("sent", "kept"),
    [
        ("video/mp4", "video/mp4"),
        ("Video/X-MatroskA", "video/x-matroska"),
        ("video/mp4; codecs=avc1", "video/mp4"),
        ("video/mp4\nSet-Cookie: session=stolen", "application/octet-stream"),
        ("video/€", "application/octet-stream"),
        ("text/html", "application/octet-stream"),
        ("", "application/octet-stream"),
    ],
)
def test_a_content_type_is_sanitised(tmp_path: Path, sent: str, kept: str) -> None:
    header, _ = received(tmp_path, [form(b"x", kind=sent)])
    assert header.content_type == kept


async def test_an_upload_that_stalls_is_refused(tmp_path: Path) -> None:
    async def stalled() -> AsyncIterator[bytes]:
        yield b"the beginning"
        await asyncio.sleep(60)

    media = MediaStore(tmp_path)
    media.open()
    async with media.spool() as spool:
        with pytest.raises(Stalled) as refused:
            body = UploadBody(chunks=stalled(), content_type="video/mp4")
            await receive(body, spool, max_bytes=100, idle_timeout=0.05)
    assert (refused.value.status, refused.value.code) == (408, "upload_stalled")

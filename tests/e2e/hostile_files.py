"""Creates hostile and broken files from the bundled samples; the same seed gives the same files.

`python -m tests.e2e.hostile_files` uploads them all to a real service and prints a table. The rules: a file is refused
with a 4xx and a code, or it is accepted and becomes ready, or failed with a code that blames the file. No response is a
5xx, no process of the service ends except decode processes, no canary file is read, and no request is made.
"""

import argparse
import asyncio
import collections
import contextlib
import random
import resource
import socket
import struct
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from model.video.inputs import InputSpec
from model.video.pixels import PixelSpec
from model.video.spec import MAX_FRAME_COUNT, FrameSpec, VideoLimits
from service.decoding.child_process import VideoRejected
from service.decoding.decoder import DecodeFailed, Decoder
from service.settings import Settings
from tests import clips
from tests.running import RunningService, running

SAMPLES = Path(__file__).parents[2] / "service" / "web" / "samples"
INPUTS = InputSpec(frames=FrameSpec(count=MAX_FRAME_COUNT), pixels=PixelSpec())
CANARY = b"canary-7f3a"
_BOXES = {b"moov", b"trak", b"mdia", b"minf", b"stbl", b"edts", b"dinf", b"udta"}
OUR_FAULT = {"internal_error", "worker_lost", "encode_failed", "store_unavailable", "decode_unavailable"}
LOST_CHILD = {"decode_crashed", "decode_timeout"}
"""Codes that blame the file although it ended a decode process; each is worth an investigation."""


@dataclass(frozen=True)
class HostileFile:
    """The bytes of a file, and the kind of its defect."""

    kind: str
    name: str
    data: bytes = field(repr=False)


def boxes(data: bytes, start: int = 0, end: int | None = None) -> Iterator[tuple[int, int, bytes]]:
    """The (start, end, name) of every box of an MP4, outer boxes first."""
    place, end = start, len(data) if end is None else end
    while place + 8 <= end:
        size, name = int.from_bytes(data[place : place + 4], "big"), data[place + 4 : place + 8]
        if size < 8 or place + size > end:
            return
        yield place, place + size, name
        if name in _BOXES:
            yield from boxes(data, place + 8, place + size)
        place += size


def all_files(folder: Path, *, port: int, seed: int) -> Iterator[HostileFile]:
    """Yield every file of the corpus; `folder` contains a canary file, and no file may cause a request to `port`."""
    rng = random.Random(seed)
    mp4, webm = (SAMPLES / "arrival.mp4").read_bytes(), (SAMPLES / "farewell.webm").read_bytes()
    yield from _truncated(mp4, webm)
    yield from _lying(mp4, webm)
    yield from _scripts(folder, port)
    yield from _odd(folder, mp4)
    yield from _polyglots(mp4)
    for number in range(120):
        source, suffix = ((mp4, "mp4"), (webm, "webm"))[number % 2]
        yield HostileFile("fuzzed", f"fuzzed-{number}.{suffix}", _fuzzed(source, rng))


def _truncated(mp4: bytes, webm: bytes) -> Iterator[HostileFile]:
    places = {place for start, end, _ in boxes(mp4) for place in (start, start + 4, start + 8, start + 12, end - 1)}
    for place in sorted(places):
        yield HostileFile("truncated", f"cut-{place}.mp4", mp4[:place])
    for place in range(0, len(webm), len(webm) // 24):
        yield HostileFile("truncated", f"cut-{place}.webm", webm[:place])


def _lying(mp4: bytes, webm: bytes) -> Iterator[HostileFile]:
    """Set every field with a size or count to a value that is too large, or to zero."""
    for start, end, name in boxes(mp4):
        label = name.decode("latin-1").strip()
        for size in (0, 1, 7, 0x7FFFFFFF, 0xFFFFFFFF):
            yield HostileFile("lying size", f"{label}-{start}-{size}.mp4", _put(mp4, start, struct.pack(">I", size)))
        if name in {b"stsz", b"stts", b"stsc", b"stco", b"ctts", b"stss"}:
            count = start + (16 if name == b"stsz" else 12)
            for value in (0, 0x00FFFFFF, 0x7FFFFFFF, 0xFFFFFFFF):
                yield HostileFile(
                    "lying count", f"{label}-count-{value}.mp4", _put(mp4, count, struct.pack(">I", value))
                )
                yield HostileFile(
                    "lying count", f"{label}-entry-{value}.mp4", _put(mp4, end - 4, struct.pack(">I", value))
                )
        if name in {b"mvhd", b"mdhd"}:
            for scale, length in ((0, 1), (1, 0xFFFFFFFE), (0xFFFFFFFF, 1)):
                data = _put(mp4, start + 20, struct.pack(">II", scale, length))
                yield HostileFile("lying duration", f"{label}-{scale}-{length}.mp4", data)
    entry = mp4.index(b"avc1")
    for width, height in ((0xFFFF, 0xFFFF), (0, 0), (0xFFFF, 1), (16384, 16384)):
        yield HostileFile(
            "huge picture", f"{width}x{height}.mp4", _put(mp4, entry + 28, struct.pack(">HH", width, height))
        )
    for place in range(4, 300, 12):
        yield HostileFile("lying element", f"ebml-{place}.webm", _put(webm, place, b"\x01" + b"\xff" * 7))


def _scripts(folder: Path, port: int) -> Iterator[HostileFile]:
    """Text files that a demuxer could read as a playlist of other files."""
    canary, url = folder / "canary.ts", f"http://127.0.0.1:{port}"
    targets = (str(canary), f"file:{canary}", f"{url}/a.ts", f"tcp://127.0.0.1:{port}", f"rtmp://127.0.0.1:{port}/a")
    hls = "#EXTM3U\n#EXT-X-VERSION:3\n#EXT-X-TARGETDURATION:1\n{}#EXTINF:1,\n{}\n#EXT-X-ENDLIST\n"
    for number, target in enumerate(targets):
        texts = {
            "hls": hls.format("", target),
            "hls-key": hls.format(f'#EXT-X-KEY:METHOD=AES-128,URI="{target}"\n', "a.ts"),
            "hls-map": hls.format(f'#EXT-X-MAP:URI="{target}"\n', "a.ts"),
            "hls-nested": f"#EXTM3U\n#EXT-X-STREAM-INF:BANDWIDTH=1\n{target}\n",
            "concat": f"ffconcat version 1.0\nfile '{target}'\n",
            "dash": '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static"><Period>'
            f"<BaseURL>{target}</BaseURL></Period></MPD>",
            "sdp": f"v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video {port} RTP/AVP 96\n"
            f"a=rtpmap:96 H264/90000\na=x:{target}\n",
            "svg": f'<svg xmlns:xlink="http://www.w3.org/1999/xlink"><image xlink:href="{target}"/></svg>',
            "asx": f'<asx version="3.0"><entry><ref href="{target}"/></entry></asx>',
            "smil": f'<smil><body><video src="{target}"/></body></smil>',
            "rtsptext": f"RTSPtext\r\n{target}\r\n",
            "pls": f"[playlist]\nFile1={target}\nNumberOfEntries=1\n",
        }
        for kind, text in texts.items():
            yield HostileFile("script", f"{kind}-{number}.mp4", text.encode())


def _odd(folder: Path, mp4: bytes) -> Iterator[HostileFile]:
    """Unusual files, files with one defect, and valid files."""
    made: dict[str, Callable[[Path], Path]] = {
        "audio": clips.audio_only_mp4,
        "no-frames": clips.zero_frame_mp4,
        "wide": clips.wide_mp4,
        "cinepak": clips.unsupported_avi,
        "cover": clips.song_with_cover,
        "uneven-rate": clips.vfr_mp4,
        "index-first-cut": clips.cut_mp4,
        "misindexed": clips.misindexed_mp4,
        "text": clips.text_file,
        "empty": clips.empty_file,
    }
    for label, make in made.items():
        yield HostileFile("odd", f"{label}.mp4", make(folder / f"{label}.mp4").read_bytes())
    yield HostileFile("odd", "swollen.webm", clips.swollen_webm(folder / "swollen.webm").read_bytes())
    yield HostileFile("odd", "title.mkv", clips.strangely_titled_mkv(folder / "title.mkv").read_bytes())
    for degrees in (90, 180, 270):
        path = clips.rotated_mp4(folder / f"rotated-{degrees}.mp4", degrees)
        yield HostileFile("odd", path.name, path.read_bytes())
    for length in (1, 2, 7, 8, 11, 12, 16, 31):
        yield HostileFile("odd", f"{length}-bytes.mp4", mp4[:length])
        yield HostileFile("odd", f"{length}-zeros.mp4", bytes(length))


def _polyglots(mp4: bytes) -> Iterator[HostileFile]:
    """Files that are valid in two formats."""
    heads = {
        "zip": b"PK\x03\x04",
        "gif": b"GIF89a",
        "png": b"\x89PNG\r\n\x1a\n",
        "pdf": b"%PDF-1.7\n",
        "html": b"<html><script>1</script>",
        "jpeg": b"\xff\xd8\xff\xe0",
        "elf": b"\x7fELF",
        "hls": b"#EXTM3U\n",
        "subtitles": b"1\n00:00:00,000 --> 00:00:01,000\nwords\n",
        "ass": b"[Script Info]\nScriptType: v4.00+\n",
        "flv": b"FLV\x01\x05\x00\x00\x00\x09",
        "avi": b"RIFF\xff\xff\xff\xffAVI LIST",
        "ogg": b"OggS\x00\x02",
        "ts": b"G@\x00\x10" * 47,
        "mpeg": b"\x00\x00\x01\xba" * 8,
        "swf": b"FWS\x09",
    }
    for name, head in heads.items():
        yield HostileFile("polyglot", f"{name}-before.mp4", head + mp4)
        yield HostileFile("polyglot", f"{name}-after.mp4", mp4 + head * 3)
        yield HostileFile("polyglot", f"{name}-over.mp4", head + mp4[len(head) :])


def _fuzzed(data: bytes, rng: random.Random) -> bytes:
    """Change some bytes, most of them in the structure; sometimes duplicate or remove a piece."""
    changed = bytearray(data)
    reach = len(changed) if rng.random() < 0.5 else min(len(changed), 2048)
    for _ in range(rng.choice((1, 4, 16, 64))):
        changed[rng.randrange(reach) if rng.random() < 0.7 else -1 - rng.randrange(reach)] = rng.randrange(256)
    if rng.random() < 0.3:
        start = rng.randrange(len(changed))
        piece = changed[start : start + rng.randrange(1, 4096)]
        changed[start : start + len(piece)] = b"" if rng.random() < 0.5 else piece * 2
    return bytes(changed)


def _put(data: bytes, place: int, piece: bytes) -> bytes:
    return data[:place] + piece + data[place + len(piece) :]


@dataclass
class Findings:
    """The outcome of the files, and the violations of the rules."""

    outcomes: dict[str, collections.Counter[str]] = field(default_factory=dict)
    breaches: list[str] = field(default_factory=list)

    def note(self, file: HostileFile, outcome: str) -> None:
        self.outcomes.setdefault(file.kind, collections.Counter())[outcome] += 1


def try_all(service: RunningService, files: Iterator[HostileFile]) -> Findings:
    """Upload each file and check the outcome against the rules."""
    findings = Findings()
    before = lasting_children(service)
    for file in files:
        reply = service.client.post("/v1/videos", content=file.data, headers={"Content-Type": "video/mp4"})
        if reply.status_code in {200, 201}:
            video = service.wait_until_processed(reply.json()["id"])
            code = "ready" if video["status"] == "ready" else video["error"]["code"]
            outcome = code if code == "ready" else f"failed: {code}"
            if code in OUR_FAULT | LOST_CHILD:
                findings.breaches.append(f"{file.name}: {code}")
        else:
            code = reply.json()["error"]["code"]
            outcome = f"{reply.status_code} {code}"
            if not 400 <= reply.status_code < 500 or code in LOST_CHILD:
                findings.breaches.append(f"{file.name}: {outcome}")
        if CANARY in reply.content:
            findings.breaches.append(f"{file.name}: the canary came out")
        findings.note(file, outcome)
    if lasting_children(service) != before or service.process.poll() is not None:
        findings.breaches.append("a process of the service was started again")
    return findings


async def peaks_of_memory(files: Iterable[HostileFile], folder: Path) -> list[tuple[str, int]]:
    """Decode each file in a child of this process; yields every file with a new maximum of memory, and its peak in MiB.

    The figure is exact, because the kernel reports the largest child that has been reaped. The decoder has the default
    limits of the service. No other child of this process may have been larger.
    """
    peaks: list[tuple[str, int]] = []
    decoder = Decoder(VideoLimits(), Settings().decode_timeout, concurrency=1)
    path = folder / "upload"
    await decoder.start()
    try:
        for file in files:
            path.write_bytes(file.data)
            with contextlib.suppress(VideoRejected, DecodeFailed):
                await decoder.decode(path, INPUTS, lambda _: None)
            peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss >> 10
            if not peaks or peak > peaks[-1][1]:
                peaks.append((file.name, peak))
    finally:
        await decoder.close()
    return peaks


def lasting_children(service: RunningService) -> set[int]:
    """The long-lived children of the service: workers and Redis."""
    return {pid for pid, command in service.children().items() if "service.decoding.child" not in command}


def main() -> int:
    """Upload the whole corpus; prints a table and all violations."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--seed", type=int, default=6)
    parser.add_argument("--every", type=int, default=1, help="take only each n-th file")
    parser.add_argument("--memory", action="store_true", help="no service: measure the decode children's memory")
    arguments = parser.parse_args()
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as name, socket.create_server(("127.0.0.1", 0)) as listener:
        folder = Path(name)
        (folder / "canary.ts").write_bytes(CANARY * 1000)
        listener.settimeout(0.5)
        files = list(all_files(folder, port=listener.getsockname()[1], seed=arguments.seed))[:: arguments.every]
        if arguments.memory:
            for file_name, peak in asyncio.run(peaks_of_memory(files, folder)):
                print(f"{peak:6} MiB  {file_name}")
            print(f"{len(files)} files, {time.monotonic() - started:.0f} s")
            return 0
        with running(folder / "data") as service:
            findings = try_all(service, iter(files))
        try:
            listener.accept()
            findings.breaches.append("a file made the service open a connection")
        except TimeoutError:
            pass
    for kind, outcomes in findings.outcomes.items():
        for outcome, count in sorted(outcomes.items()):
            print(f"{kind:16} {count:5} {outcome}")
    print(f"{len(files)} files, {len(findings.breaches)} breaches, {time.monotonic() - started:.0f} s")
    print(*findings.breaches, sep="\n")
    return 1 if findings.breaches else 0


if __name__ == "__main__":
    sys.exit(main())

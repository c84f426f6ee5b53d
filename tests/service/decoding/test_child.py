"""The child by itself: its imports, its resource limits, and what it can reach."""

import json
import os
import subprocess
import sys
from pathlib import Path

from model.video.inputs import InputSpec
from model.video.pixels import PixelSpec
from model.video.spec import FrameSpec, VideoLimits
from service.decoding.protocol import DecodeRequest, write_request

ROOT = Path(__file__).parents[3]
REQUEST = DecodeRequest(
    path="/nowhere.mp4",
    inputs=InputSpec(frames=FrameSpec(), pixels=PixelSpec()),
    limits=VideoLimits(),
    thumbnail_side=320,
    memory_bytes=600 << 20,
    cpu_seconds=60,
    seccomp=True,
)


def run(code: str, *arguments: str) -> bytes:
    """Return what a fresh interpreter prints; it has one thread, like a child that `Decoder` starts."""
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=ROOT,
        capture_output=True,
        timeout=60,
        check=True,
        env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},
    )
    return done.stdout


def test_it_imports_neither_torch_nor_the_web_framework() -> None:
    imported = run("import sys, service.decoding.child; print(*sys.modules)").decode().split()
    packages = {name.partition(".")[0] for name in imported}
    assert {"av", "numpy", "PIL"} <= packages
    assert not packages & {"torch", "transformers", "fastapi", "starlette", "uvicorn", "redis", "asyncio", "pydantic"}


def test_output_of_libraries_does_not_mix_with_replies() -> None:
    printed = run(
        "import ctypes; from service.decoding.child import private_stdout\n"
        "replies = private_stdout()\n"
        "ctypes.CDLL(None).puts(b'printed by a library'); print('printed by Python', flush=True)\n"
        "replies.write(b'reply'); replies.flush()"
    )
    assert printed == b"reply"


LIMITED = """
import json, sys
from service.decoding.child import set_limits
from service.decoding.protocol import read_request

set_limits(read_request(sys.argv[1].encode()))
errors = {}
def attempt(what, act):
    try:
        act()
    except (OSError, MemoryError) as error:
        errors[what] = type(error).__name__
def write():
    with open(sys.argv[2], "wb") as file:
        file.write(b"x")
attempt("memory", lambda: bytearray(1 << 30))
attempt("write", write)
attempt("files", lambda: [open("/dev/null") for _ in range(30)])
print(json.dumps(errors))
"""


def test_it_cannot_exceed_its_limits(tmp_path: Path) -> None:
    printed = run(LIMITED, write_request(REQUEST).decode(), str(tmp_path / "file"))
    assert json.loads(printed) == {"memory": "MemoryError", "write": "OSError", "files": "OSError"}


def test_it_has_no_network_where_the_kernel_allows_a_namespace() -> None:
    unshares = "import ctypes, sys; sys.exit(ctypes.CDLL(None).unshare(0x50000000) != 0)"
    may_leave = subprocess.run([sys.executable, "-c", unshares], check=False).returncode == 0
    devices = run(
        "from pathlib import Path; from service.decoding.child import isolate\n"
        "isolate(); print(Path('/proc/self/net/dev').read_text())"
    ).decode()
    names = [line.partition(":")[0].strip() for line in devices.splitlines() if ":" in line]
    assert names == ["lo"] if may_leave else "lo" in names


def test_it_exits_silently_without_a_request() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "service.decoding.child"],
        cwd=ROOT,
        input=b"",
        capture_output=True,
        timeout=60,
        check=True,
    )
    assert (done.stdout, done.stderr) == (b"", b"")

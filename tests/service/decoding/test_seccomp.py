"""A process with the seccomp filter can read and write what it has open, and do nothing else."""

import json
import platform
import socket
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
HAS_FILTER = sys.platform == "linux" and platform.machine() in {"x86_64", "aarch64"}

pytestmark = pytest.mark.skipif(not HAS_FILTER, reason="the filter is for Linux on x86-64 and aarch64")

TRIES = """
import ctypes, json, mmap, os, signal, socket, subprocess, sys, threading
from service.decoding import seccomp

own = open(sys.argv[1], "rb", buffering=0)
other, results = sys.argv[2], {}
listener = int(sys.argv[3])
libc = ctypes.CDLL(None, use_errno=True)

seccomp.install_filter()

def attempt(what, act):
    try:
        results[what] = repr(act())
    except BaseException as error:
        results[what] = type(error).__name__

def connect():
    socket.socket(socket.AF_INET, socket.SOCK_STREAM).connect(("127.0.0.1", listener))

def raw(number, *arguments):
    result = libc.syscall(number, *arguments)
    if result < 0:
        raise OSError(ctypes.get_errno(), "refused")
    return result

attempt("read own", lambda: own.read(4))
attempt("seek own", lambda: own.seek(2))
attempt("size of own", lambda: os.fstat(own.fileno()).st_size)
attempt("memory", lambda: len(bytearray(1 << 24)))
attempt("open", lambda: os.open(other, os.O_RDONLY))
attempt("open to write", lambda: os.open(other + ".new", os.O_WRONLY | os.O_CREAT))
attempt("list", lambda: os.listdir("/"))
attempt("stat", lambda: os.stat(other))
attempt("unlink", lambda: os.unlink(other))
attempt("connect", connect)
attempt("local socket", lambda: socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
attempt("pair", socket.socketpair)
attempt("fork", os.fork)
attempt("execve", lambda: os.execv(sys.executable, [sys.executable, "-c", "print('out')"]))
attempt("run", lambda: subprocess.run([sys.executable, "-c", "print('out')"], check=True))
attempt("thread", threading.Thread(target=int).start)
attempt("kill", lambda: os.kill(os.getppid(), 0))
attempt("code", lambda: mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_EXEC))
attempt("ptrace", lambda: libc.ptrace(16, os.getpid(), 0, 0) and raw(-1))
attempt("unshare", lambda: raw({"x86_64": 272, "aarch64": 97}[sys.argv[4]], 0x10000000))
attempt("io_uring", lambda: raw(425, 8, 0))
attempt("own limits", lambda: raw({"x86_64": 302, "aarch64": 261}[sys.argv[4]], 0, 7, 0, 0))
attempt("environment of the parent", lambda: open(f"/proc/{os.getppid()}/environ", "rb").read())
print(json.dumps(results))
"""
READS = {"read own": "b'mine'", "seek own": "2", "size of own": "9", "memory": str(1 << 24)}


def test_it_can_read_its_open_file_and_nothing_else(tmp_path: Path) -> None:
    own, other = tmp_path / "own", tmp_path / "other"
    own.write_bytes(b"mine only")
    other.write_bytes(b"a secret")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(0.2)
        port = str(listener.getsockname()[1])
        done = subprocess.run(
            [sys.executable, "-c", TRIES, str(own), str(other), port, platform.machine()],
            cwd=ROOT,
            capture_output=True,
            timeout=60,
            check=True,
        )
        with pytest.raises(TimeoutError):
            listener.accept()
    results = json.loads(done.stdout)
    assert {what: results.pop(what) for what in READS} == READS
    assert set(results.values()) <= {"PermissionError", "RuntimeError"}, results
    assert len(results) == 19
    assert other.read_bytes() == b"a secret"
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["other", "own"]


def test_the_module_reports_which_layers_work_on_this_machine() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "service.decoding.seccomp"], cwd=ROOT, capture_output=True, timeout=60, check=True
    )
    layers = json.loads(done.stdout)
    assert layers.keys() == {"seccomp", "network_namespace"}
    assert layers["seccomp"] is True


FOREIGN = """
import ctypes, sys
from service.decoding import seccomp
seccomp._ARCHITECTURES = {machine: (0x40000003, column) for machine, (_, column) in seccomp._ARCHITECTURES.items()}
seccomp.install_filter()  # for another architecture
print("alive", flush=True)
"""


def test_system_calls_of_another_architecture_kill_the_process() -> None:
    done = subprocess.run([sys.executable, "-c", FOREIGN], cwd=ROOT, capture_output=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (-31, b"")  # SIGSYS

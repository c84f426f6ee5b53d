"""The seccomp filter for a process that reads an untrusted file: the system calls that it may still make.

It works on Linux on x86-64 and aarch64, without privileges, and inside containers. Files that are open stay usable.
The process can no longer open or connect anything, start or signal a process, or make memory executable.
`python -m service.decoding.seccomp` installs the filter in its own process, tries to get past it, and prints as JSON
which layers of the sandbox work on this machine.
"""

import ctypes
import json
import os
import platform
import socket
import struct
import sys
import threading
from collections.abc import Callable, Mapping

_LIBC = ctypes.CDLL(None, use_errno=True)

# From Linux's <sched.h> and <sys/prctl.h>.
_CLONE_NEWUSER, _CLONE_NEWNET = 0x10000000, 0x40000000
_PR_SET_NO_NEW_PRIVS = 38

# From <linux/seccomp.h>, <linux/filter.h>, <linux/audit.h>, <sys/mman.h> and <fcntl.h>.
_SET_MODE_FILTER, _FILTER_FLAG_TSYNC = 1, 1
_ALLOW, _REFUSE, _KILL = 0x7FFF0000, 0x00050001, 0x80000000  # a refused call fails with EPERM
_LOAD, _JUMP_EQUAL, _JUMP_ANY_BIT, _RETURN = 0x20, 0x15, 0x45, 0x06
_NUMBER, _ARCHITECTURE, _ARGUMENTS = 0, 4, 16  # offsets in `struct seccomp_data`
_PROT_EXEC, _AT_EMPTY_PATH = 0x4, 0x1000

_ARCHITECTURES = {"x86_64": (0xC000003E, 0), "aarch64": (0xC00000B7, 1)}
"""By machine: the kernel's number of the architecture, and the machine's column in the tables below."""
_SECCOMP = (317, 277)
_ALLOWED: Mapping[str, tuple[int, int]] = {
    # read, write, stat and close what is open
    **{"read": (0, 63), "pread64": (17, 67), "readv": (19, 65), "lseek": (8, 62), "fstat": (5, 80)},
    **{"write": (1, 64), "writev": (20, 66), "close": (3, 57)},
    # memory
    **{"brk": (12, 214), "munmap": (11, 215), "mremap": (25, 216), "madvise": (28, 233)},
    # the process itself, the time, and exit
    **{"rt_sigaction": (13, 134), "rt_sigprocmask": (14, 135), "rt_sigreturn": (15, 139), "sigaltstack": (131, 132)},
    **{"futex": (202, 98), "sched_yield": (24, 124), "sched_getaffinity": (204, 123)},
    **{"getpid": (39, 172), "gettid": (186, 178), "getrusage": (98, 165), "getrandom": (318, 278)},
    **{"clock_gettime": (228, 113), "clock_getres": (229, 114), "gettimeofday": (96, 169)},
    **{"nanosleep": (35, 101), "clock_nanosleep": (230, 115), "restart_syscall": (219, 128)},
    **{"exit": (60, 93), "exit_group": (231, 94)},
}
"""System calls that are allowed with any arguments: their numbers on x86-64 and on aarch64."""
_NOT_EXECUTABLE: Mapping[str, tuple[int, int]] = {"mmap": (9, 222), "mprotect": (10, 226)}
"""System calls that are allowed unless the third argument asks for executable memory."""
_BY_DESCRIPTOR = (262, 79)
"""`newfstatat`, with which older C libraries stat an open file: allowed with `AT_EMPTY_PATH` only."""


class SeccompUnavailable(Exception):
    """The filter cannot be installed on this machine."""


def leave_network() -> bool:
    """Move this process to a network namespace of its own, without devices; returns whether the kernel allowed it."""
    return sys.platform == "linux" and bool(_LIBC.unshare(_CLONE_NEWUSER | _CLONE_NEWNET) == 0)


def set_no_new_privileges() -> None:
    """Prevent this process and its children from gaining privileges (`PR_SET_NO_NEW_PRIVS`); does nothing off Linux."""
    if sys.platform == "linux":
        _LIBC.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)


def install_filter() -> None:
    """Install the filter for every thread of this process; it cannot be removed.

    Raises:
        SeccompUnavailable: the system or the machine is another one, or the kernel refuses.
    """
    machine = platform.machine()
    if sys.platform != "linux" or machine not in _ARCHITECTURES:
        raise SeccompUnavailable(f"There is no filter for {sys.platform} on {machine}.")
    set_no_new_privileges()  # without it only privileged processes can install a filter
    _, column = _ARCHITECTURES[machine]
    code = _program(machine)
    buffer = ctypes.create_string_buffer(code, len(code))
    # struct sock_fprog: the number of instructions, and where they are
    program = struct.pack("@HP", len(code) // 8, ctypes.addressof(buffer))
    number, mode, flags = (ctypes.c_long(value) for value in (_SECCOMP[column], _SET_MODE_FILTER, _FILTER_FLAG_TSYNC))
    if _LIBC.syscall(number, mode, flags, ctypes.c_char_p(program)) != 0:
        raise SeccompUnavailable(f"The kernel refuses the filter: {os.strerror(ctypes.get_errno())}.")


def _program(machine: str) -> bytes:
    """Return the filter as classic BPF, eight bytes an instruction: code, jump if true, jump if false, operand."""
    architecture, column = _ARCHITECTURES[machine]
    program = [
        _instruction(_LOAD, _ARCHITECTURE),
        _instruction(_JUMP_EQUAL, architecture, if_true=1),
        _instruction(_RETURN, _KILL),  # on another architecture the same numbers are other calls
        _instruction(_LOAD, _NUMBER),
    ]
    for numbers in _ALLOWED.values():
        program += [_instruction(_JUMP_EQUAL, numbers[column], if_false=1), _instruction(_RETURN, _ALLOW)]
    for numbers in _NOT_EXECUTABLE.values():
        program += _argument_rule(numbers[column], 2, _PROT_EXEC, if_set=_REFUSE, if_not=_ALLOW)
    program += _argument_rule(_BY_DESCRIPTOR[column], 3, _AT_EMPTY_PATH, if_set=_ALLOW, if_not=_REFUSE)
    return b"".join([*program, _instruction(_RETURN, _REFUSE)])


def _argument_rule(number: int, argument: int, bit: int, *, if_set: int, if_not: int) -> list[bytes]:
    return [
        _instruction(_JUMP_EQUAL, number, if_false=4),
        _instruction(_LOAD, _ARGUMENTS + 8 * argument),  # both machines are little-endian: the low half comes first
        _instruction(_JUMP_ANY_BIT, bit, if_false=1),
        _instruction(_RETURN, if_set),
        _instruction(_RETURN, if_not),
    ]


def _instruction(code: int, operand: int, *, if_true: int = 0, if_false: int = 0) -> bytes:
    return struct.pack("@HBBI", code, if_true, if_false, operand)


def main() -> None:
    """Print which layers of the sandbox work on this machine."""
    network = leave_network()
    try:
        install_filter()
        seccomp = all(_is_refused(attempt) for attempt in _FORBIDDEN)
    except SeccompUnavailable:
        seccomp = False
    sys.stdout.write(json.dumps({"seccomp": seccomp, "network_namespace": network}) + "\n")


_FORBIDDEN: tuple[Callable[[], object], ...] = (
    lambda: os.open(os.devnull, os.O_RDONLY),
    lambda: socket.socket(socket.AF_INET, socket.SOCK_STREAM),
    lambda: os.kill(os.getppid(), 0),
    lambda: os._exit(0) if os.fork() == 0 else None,
    lambda: os.execv(sys.executable, [sys.executable, "-c", ""]),  # noqa: S606 - the filter refuses it
    threading.Thread(target=int).start,
)


def _is_refused(attempt: Callable[[], object]) -> bool:
    try:
        attempt()
    except (PermissionError, RuntimeError):  # threading raises RuntimeError when it cannot start a thread
        return True
    return False


if __name__ == "__main__":
    main()

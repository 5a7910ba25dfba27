"""Network namespaces without a name: they end with the last process and descriptor that holds them.

So nothing is left behind however a lab ends, and labs beside one another never meet.
"""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

import trio

CLONE_NEWNET = 0x40000000
END_WITHIN_S = 5.0

_T = TypeVar("_T")
_libc = ctypes.CDLL(None, use_errno=True)


class Namespace:
    """One network namespace, held by a descriptor of this process.

    Raises:
        OSError: this process may not make any.
    """

    def __init__(self) -> None:
        self.fd = _apart(_make)

    @property
    def path(self) -> str:
        """Where other processes find it, for as long as this one lives and has not closed it."""
        return f"/proc/{os.getpid()}/fd/{self.fd}"

    def command(self, argv: Sequence[str]) -> list[str]:
        """A command that runs ``argv`` inside."""
        return ["nsenter", f"--net={self.path}", "--", *argv]

    def call(self, function: Callable[[], _T]) -> _T:
        """What ``function`` returns in a thread that is inside. Sockets that it makes stay inside.

        So do processes that it starts. Raises what ``function`` raises.
        """

        def inside() -> _T:
            _check(_libc.setns(self.fd, CLONE_NEWNET))
            return function()

        return _apart(inside)

    def socket(self, family: socket.AddressFamily, kind: socket.SocketKind) -> socket.socket:
        """A socket in the namespace, to be used from anywhere."""
        return self.call(lambda: socket.socket(family, kind))

    def close(self) -> None:
        """Give it up. Its interfaces end when no process is left in it."""
        os.close(self.fd)


def end_processes(namespaces: Iterable[int]) -> None:
    """Kill every process in the namespaces of these descriptors, and wait until none is left."""
    # While a descriptor is held, no other namespace can get its number.
    ours = {_key(fd) for fd in namespaces}
    until = time.monotonic() + END_WITHIN_S
    while (found := list(_processes_in(ours))) and time.monotonic() < until:
        for pid in found:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.01)


def bring_workers_home() -> None:
    """Take the idle threads that trio keeps out of namespaces of labs, into that of this process.

    trio starts programs on threads that it keeps for ten seconds after their work. One that began inside a
    namespace is still there when the next loop of the process, which has nothing to do with the lab, uses it.
    """
    home = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        away = sum(_is_away(task, _key(home)) for task in Path("/proc/self/task").iterdir())
        all_back = threading.Barrier(away + 1)  # so that each of them gets one of the calls

        def come_back() -> None:
            _check(_libc.setns(home, CLONE_NEWNET))
            all_back.wait(END_WITHIN_S)

        for _ in range(away):
            trio.lowlevel.start_thread_soon(come_back, lambda outcome: outcome.unwrap())
        all_back.wait(END_WITHIN_S)
    finally:
        os.close(home)


def _is_away(task: Path, home: tuple[int, int]) -> bool:
    try:
        return _key(task / "ns/net") != home
    except OSError:  # it has just ended
        return False


def _processes_in(namespaces: set[tuple[int, int]]) -> Iterable[int]:
    for entry in Path("/proc").iterdir():
        # One that ends while we look, or has ended and was not waited for, is in none.
        with suppress(OSError):
            if entry.name.isdecimal() and _key(entry / "ns/net") in namespaces:
                yield int(entry.name)


def _key(file: int | Path) -> tuple[int, int]:
    found = os.stat(file)  # noqa: PTH116 - a descriptor has no path
    return found.st_dev, found.st_ino


def _make() -> int:
    _check(_libc.unshare(CLONE_NEWNET))
    return os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)


def _check(result: int) -> None:
    if result:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def _apart(function: Callable[[], _T]) -> _T:
    # A thread may leave its namespace, and nobody else is taken along; it is never used again.
    with ThreadPoolExecutor(1, "namespace") as thread:
        return thread.submit(function).result()

"""Dialling from the port that we listen on, so that what a router maps is that port.

A listener shares its port only after it is bound: a second listener, of another node, is still refused, while
a socket that dials may be bound beside it.
"""

from __future__ import annotations

import errno
import math
import socket
import struct
from collections.abc import Generator, Sequence
from contextlib import contextmanager, suppress

import trio

from shoal.net.addresses import to_multiaddr
from shoal.net.libp2p.tcp import tuned

TAKEN = frozenset({errno.EADDRINUSE, errno.EADDRNOTAVAIL, errno.EINVAL})
"""What the system says when another connection between the same two addresses exists, or has just ended."""
NO_ROUTE = frozenset({errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EAFNOSUPPORT})
"""What it says where this machine has not the IP version of an address."""
ARRIVED_WITHIN_S = 0.5
LOOK_EVERY_S = 0.005
_ABORT = struct.pack("ii", 1, 0)
_SENDING = (1, 8)
"""The states of TCP, by Linux's numbers, in which what was sent is sent again: ESTABLISHED and CLOSE_WAIT."""


def end_for(ends: Sequence[tuple[str, int]], host: str) -> tuple[str, int] | None:
    """That of our ends, by host and port, from which ``host`` can be dialled; ``None`` if there is none."""
    return next((end for end in ends if (":" in end[0]) == (":" in host)), None)


def from_inside(end: tuple[str, int]) -> tuple[str, int]:
    """Where a listener of ours is dialled from here."""
    loopback = {"0.0.0.0": "127.0.0.1", "::": "::1"}
    return loopback.get(end[0], end[0]), end[1]


def forwarded(hosts: Sequence[tuple[str, int]], ends: Sequence[tuple[str, int]]) -> tuple[str, ...]:
    """The multiaddrs under which listeners on ``ends`` are reached through a router, as our user says.

    Args:
        hosts: of the router, each with its port that leads to us, or 0 where that is our own.
    """
    found = [(host, port or end[1]) for host, port in hosts if (end := end_for(ends, host))]
    return tuple(to_multiaddr(host, port) for host, port in found)


def leave_no_trace(raw: trio.socket.SocketType) -> None:
    """Let a connection end without the minute in which the system keeps its two addresses from another.

    Both ends of a meeting are fixed, so the next between the same peers would have to wait. A close discards
    what the other end has not got yet: see :func:`wait_arrived`.
    """
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _ABORT)


async def wait_arrived(raw: trio.socket.SocketType) -> None:
    """Wait, also when cancelled, until the other end's system has all that was sent, for half a second."""
    with trio.move_on_after(ARRIVED_WITHIN_S, shield=True), suppress(OSError, ValueError):  # it was closed
        while _unacknowledged(raw):  # noqa: ASYNC110  the system tells of it no other way
            await trio.sleep(LOOK_EVERY_S)


def _unacknowledged(raw: trio.socket.SocketType) -> int:
    """Bytes that are on their way; none where the connection has ended."""
    if not hasattr(socket, "TCP_INFO"):
        return 0
    import fcntl  # noqa: PLC0415  these are not on Windows, where there is no such option either
    import termios  # noqa: PLC0415

    state = raw.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0]
    queued = fcntl.ioctl(raw.fileno(), termios.TIOCOUTQ, bytes(4))
    return int.from_bytes(queued, "little") if state in _SENDING else 0


def share_port(raw: trio.socket.SocketType) -> None:
    """Let sockets that dial be bound to a listening socket's port. Where that is unknown nothing changes."""
    if hasattr(socket, "SO_REUSEPORT"):
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)


async def hold_port(host: str) -> trio.socket.SocketType:
    """A socket that keeps a free port for one who does not listen, and dials from it. Its owner closes it."""
    raw = _shared(host)
    await raw.bind((host, 0))
    return raw


async def dial_from(
    local: tuple[str, int] | None, host: str, port: int, again_s: float = math.inf
) -> trio.SocketStream:
    """A connection from the local address if there is one, and if the system lets us.

    It does not while another connection between the same two addresses exists, or has just ended. A peer
    behind a router then has another mapping, and that is all.

    Args:
        again_s: when the dial is begun anew. Where our router has forgotten a connection, the other end
            still has one between the same two addresses, which the first dial makes it give up.

    Raises:
        OSError: nobody answers there.
    """
    if local is not None and (":" in local[0]) == (":" in host):
        try:
            with trio.move_on_after(again_s):
                return await dial_only_from(local, host, port)
            return await dial_only_from(local, host, port)
        except OSError as error:
            if error.errno not in TAKEN:
                raise
    with _no_host(host):
        return tuned(await trio.open_tcp_stream(host, port))


async def dial_only_from(local: tuple[str, int], host: str, port: int) -> trio.SocketStream:
    """As :func:`dial_from`, from that address or not at all."""
    raw = _shared(local[0])
    try:
        await raw.bind(local)
        with _no_host(host):
            await raw.connect((host, port))
    except BaseException:
        raw.close()
        raise
    return tuned(trio.SocketStream(raw))


@contextmanager
def _no_host(host: str) -> Generator[None]:
    """A host that cannot even be looked up is one where nobody answers, not an error of ours."""
    try:
        yield
    except ValueError as error:  # an empty or an overlong part of a name
        raise OSError(f"{host!r} is no host") from error


def _shared(host: str) -> trio.socket.SocketType:
    raw = trio.socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    share_port(raw)
    return raw

"""NAT-PMP as one who wants a port speaks it (RFC 6886). No I/O.

There are libraries of both protocols for Python; none that we found is kept up, has wheels everywhere and
leaves the waiting to its caller.
"""

from __future__ import annotations

import ipaddress
import struct
from dataclasses import dataclass

from shoal.errors import ChannelClosed

PORT = 5351
_ANSWER = 128
_ADDRESS, _MAP_TCP = 0, 2
_WORDS = {
    1: "it speaks another version",
    2: "it is switched off there",
    3: "it has no network",
    4: "it has no port left",
    5: "it cannot do that",
}


@dataclass(frozen=True, slots=True)
class GrantedPort:
    """A public port, and for how long it leads to us."""

    port: int
    lease_s: int


def ask_address() -> bytes:
    """Ask a router for its public address."""
    return struct.pack(">BB", 0, _ADDRESS)


def ask_port(port: int, wanted: int, lease_s: int) -> bytes:
    """Ask it to have a public TCP port lead to ours. A lease of 0, with 0 wanted, gives it back."""
    return struct.pack(">BBHHHI", 0, _MAP_TCP, 0, port, wanted, lease_s)


def read_external_address(answer: bytes) -> str:
    """Raises ChannelClosed: it is no such answer, or a refusal."""
    _check(answer, _ADDRESS, 12)
    return str(ipaddress.IPv4Address(answer[8:12]))


def read_port(answer: bytes, port: int) -> GrantedPort:
    """Raises ChannelClosed: it is no such answer, or a refusal."""
    _check(answer, _MAP_TCP, 16)
    ours, public, lease_s = struct.unpack_from(">HHI", answer, 8)
    if ours != port:
        raise ChannelClosed("the router speaks of another port")
    return GrantedPort(public, lease_s)


def _check(answer: bytes, opcode: int, size: int) -> None:
    if len(answer) < 4 or answer[0] != 0 or answer[1] != _ANSWER + opcode:
        raise ChannelClosed("the router's answer is none of NAT-PMP")
    (result,) = struct.unpack_from(">H", answer, 2)
    if result:
        raise ChannelClosed(f"the router refuses: {_WORDS.get(result, f'reason {result}')}")
    if len(answer) < size:
        raise ChannelClosed("the router's answer is cut short")

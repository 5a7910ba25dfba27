"""PCP as one who wants a port speaks it (RFC 6887): NAT-PMP's successor, at the same port. No I/O."""

from __future__ import annotations

import ipaddress
import struct
from dataclasses import dataclass

from shoal.errors import ChannelClosed

NONCE_BYTES = 12
SIZE = 60
_VERSION, _MAP, _ANSWER, _TCP = 2, 1, 128, 6
_HEAD = struct.Struct(">BBHI16s")
_MAPPING = struct.Struct(">12sB3xHH16s")
_WORDS = {
    1: "it speaks another version",
    2: "it is switched off there",
    4: "it cannot do that",
    7: "it has no network",
    8: "it has no port left",
    10: "this machine has too many ports",
    11: "it cannot give that port",
    12: "it sees this machine at another address",
}


@dataclass(frozen=True, slots=True)
class PcpMapping:
    """A public address and port, and for how long they lead to us."""

    host: str
    port: int
    lease_s: int


def ask_mapping(own: str, nonce: bytes, port: int, wanted: int, lease_s: int) -> bytes:
    """Ask a router to have a public TCP port lead to ours; a lease of 0 gives it back.

    Args:
        own: our address, as the router sees it.
        nonce: the same for all that is said of one mapping: nobody else can change it.
    """
    head = _HEAD.pack(_VERSION, _MAP, 0, lease_s, _packed(own))
    return head + _MAPPING.pack(nonce, _TCP, port, wanted, _packed("0.0.0.0"))


def read_mapping(answer: bytes, nonce: bytes, port: int) -> PcpMapping:
    """Raises ChannelClosed: it is no answer to that, or a refusal."""
    if len(answer) < 4 or answer[1] & _ANSWER == 0:
        raise ChannelClosed("the router's answer is none of PCP")
    if result := answer[3]:
        raise ChannelClosed(f"the router refuses: {_WORDS.get(result, f'reason {result}')}")
    if len(answer) < SIZE or answer[0] != _VERSION or answer[1] != _ANSWER + _MAP:
        raise ChannelClosed("the router's answer is none of PCP")
    (lease_s,) = struct.unpack_from(">I", answer, 4)
    said, protocol, ours, public, host = _MAPPING.unpack_from(answer, 24)
    if (said, protocol, ours) != (nonce, _TCP, port):
        raise ChannelClosed("the router speaks of another port")
    address = ipaddress.IPv6Address(host)
    return PcpMapping(str(address.ipv4_mapped or address), public, lease_s)


def _packed(host: str) -> bytes:
    return ipaddress.IPv6Address(f"::ffff:{host}").packed

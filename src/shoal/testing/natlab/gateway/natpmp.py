"""A gateway's side of NAT-PMP (RFC 6886): one datagram in, one out."""

from __future__ import annotations

import ipaddress
import struct

from shoal.testing.natlab.gateway.port_table import LONGEST_LEASE_S, PortMapping, PortTable, TransportName

PORT = 5351
_VERSION = 0
_SUCCESS, _OTHER_VERSION, _NO_RESOURCES, _OTHER_OPCODE = 0, 1, 4, 5
_PROTOCOLS: dict[int, TransportName] = {1: "udp", 2: "tcp"}
_ANSWER = 128
_TRIES = 16


def answer_natpmp(request: bytes, host: str, public: str, up_s: int, table: PortTable) -> bytes | None:
    """The answer to a request; ``None`` for what is none.

    Args:
        host: address of who asks; a mapping always leads to it.
        public: the gateway's public address.
        up_s: seconds since the gateway's mappings began, by which clients see that it was restarted.
    """
    if len(request) < 2 or request[1] >= _ANSWER:
        return None
    version, opcode = request[0], request[1]
    if version != _VERSION:
        return struct.pack(">BBHI", _VERSION, _ANSWER + opcode, _OTHER_VERSION, up_s)
    if opcode == 0:
        address = ipaddress.IPv4Address(public).packed
        return struct.pack(">BBHI4s", _VERSION, _ANSWER, _SUCCESS, up_s, address)
    if opcode not in _PROTOCOLS:
        return struct.pack(">BBHI", _VERSION, _ANSWER + opcode, _OTHER_OPCODE, up_s)
    if len(request) < 12:
        return None
    port, wanted, lease_s = struct.unpack_from(">4xHHI", request)
    public_port, lease_s = map_port(_PROTOCOLS[opcode], port, wanted or port, host, lease_s, table)
    result = _SUCCESS if public_port or not lease_s else _NO_RESOURCES
    given = (port, public_port, lease_s if public_port else 0)
    return struct.pack(">BBHIHHI", _VERSION, _ANSWER + opcode, result, up_s, *given)


def map_port(
    protocol: TransportName, port: int, wanted: int, host: str, lease_s: int, table: PortTable
) -> tuple[int, int]:
    """Make, renew or end a mapping; its public port, 0 when there is none, and its lease."""
    mine = [m for m in table if (m.protocol, m.address) == (protocol, host) and port in (0, m.port)]
    if not lease_s:
        for mapping in mine:
            table.remove(mapping)
        return 0, 0
    lease_s = min(lease_s, LONGEST_LEASE_S)
    # A mapping that is there stays (RFC 6886, 3.3); else the port that is wanted, or a free one near it.
    ports = [mine[0].public_port] if mine else [1024 + (wanted - 1024 + n) % 64_512 for n in range(_TRIES)]
    for public_port in ports:
        if table.add(PortMapping(protocol, public_port, host, port, lease_s)):
            return public_port, lease_s
    return 0, lease_s

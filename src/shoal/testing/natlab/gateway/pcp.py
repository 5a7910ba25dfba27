"""A gateway's side of PCP (RFC 6887), of which it knows the mapping of one port."""

from __future__ import annotations

import ipaddress
import struct

from shoal.testing.natlab.gateway.natpmp import map_port
from shoal.testing.natlab.gateway.port_table import PortTable

VERSION = 2
_MAP, _ANSWER, _TCP = 1, 128, 6
_SUCCESS, _OTHER_OPCODE, _NO_RESOURCES, _ADDRESS_MISMATCH = 0, 4, 8, 12


def answer_pcp(request: bytes, host: str, public: str, up_s: int, table: PortTable) -> bytes | None:
    """As :func:`shoal.testing.natlab.gateway.natpmp.answer_natpmp`."""
    if len(request) < 24 or request[1] >= _ANSWER:
        return None
    lease_s, own = struct.unpack_from(">I16s", request, 4)
    if request[1] != _MAP or len(request) < 60:
        return _head(request[1], _OTHER_OPCODE, 0, up_s) + request[24:]
    nonce, protocol, port, wanted = struct.unpack_from(">12sB3xHH", request, 24)
    if ipaddress.IPv6Address(own).ipv4_mapped != ipaddress.IPv4Address(host):
        return _head(_MAP, _ADDRESS_MISMATCH, 0, up_s) + request[24:]
    kind = "tcp" if protocol == _TCP else "udp"
    public_port, lease_s = map_port(kind, port, wanted or port, host, lease_s, table)
    result = _SUCCESS if public_port or not lease_s else _NO_RESOURCES
    given = struct.pack(">12sB3xHH", nonce, protocol, port, public_port)
    return _head(_MAP, result, lease_s, up_s) + given + ipaddress.IPv6Address(f"::ffff:{public}").packed


def _head(opcode: int, result: int, lease_s: int, up_s: int) -> bytes:
    return struct.pack(">BBBBII12x", VERSION, _ANSWER + opcode, 0, result, lease_s, up_s)

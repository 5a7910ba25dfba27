"""Which addresses we announce, and how they are written. Which ones we dial: :mod:`shoal.net.dialable`."""

from __future__ import annotations

import ipaddress
import re
import socket
from collections.abc import Iterable, Sequence

import psutil

from shoal.errors import UsageError
from shoal.types import PeerId

IPVersion = int
"""4 or 6."""
EVERYWHERE = "*"
"""Every interface, in IPv4 and in IPv6."""
ADDRESSES_LIMIT = 8
_UNREACHABLE = ("0.0.0.0", "::")
_CIRCUIT = "/p2p-circuit"


def listening_hosts(host: str) -> tuple[str, ...]:
    """What a listener on ``host`` binds: for ``EVERYWHERE`` one host of each IP version that is here."""
    if host != EVERYWHERE:
        return (host,)
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::", 0))
    except OSError:
        return ("0.0.0.0",)
    return ("0.0.0.0", "::")


def expand(host: str, port: int) -> tuple[str, ...]:
    """The multiaddrs under which a listener on ``host`` can be reached, as :func:`announced`."""
    return announced([(one, port) for one in listening_hosts(host)])


def announced(listening: Sequence[tuple[str, int]], limit: int = ADDRESSES_LIMIT) -> tuple[str, ...]:
    """The multiaddrs under which listeners, by host and port, can be reached: public ones first, IPv6 first.

    A listener on every interface is announced with the address of each; with loopback only where there is
    no other.
    """
    given = [to_multiaddr(host, port) for host, port in listening if host not in _UNREACHABLE]
    everywhere = [(host, port) for host, port in listening if host in _UNREACHABLE]
    found = [(address, port) for host, port in everywhere for address in _interfaces(6 if ":" in host else 4)]
    found.sort(key=lambda one: (one[0].is_private, one[0].version == 4, str(one[0])))
    outward = [one for one in found if not one[0].is_loopback and not one[0].is_link_local]
    chosen = outward or [one for one in found if one[0].is_loopback]
    if len(chosen) > limit:  # many addresses of one version leave half of the room to the other
        many = [one for one in chosen if one[0].version == 6], [one for one in chosen if one[0].version == 4]
        room = [max(limit // 2, limit - len(other)) for other in reversed(many)]
        few = {one for those, size in zip(many, room, strict=True) for one in those[:size]}
        chosen = [one for one in chosen if one in few]
    return tuple(given + [to_multiaddr(str(address), port) for address, port in chosen])


def _interfaces(version: int) -> set[ipaddress.IPv4Address | ipaddress.IPv6Address]:
    """The addresses of this machine. A listener on ``::`` takes IPv6 alone, one on ``0.0.0.0`` IPv4 alone."""
    family = socket.AF_INET6 if version == 6 else socket.AF_INET
    texts = (a.address for group in psutil.net_if_addrs().values() for a in group if a.family == family)
    return {ipaddress.ip_address(text) for text in texts}


def to_multiaddr(host: str, port: int) -> str:
    """``/ip4/…/tcp/…`` or ``/ip6/…/tcp/…``."""
    version = 6 if ":" in host else 4
    return f"/ip{version}/{host}/tcp/{port}"


def to_socket(host: str, port: int) -> str:
    """``192.0.2.1:4002`` or ``[2001:db8::1]:4002``."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def host_and_port(multiaddr: str, *, listening: bool = False) -> tuple[str, int] | None:
    """Host and port of a plain ``/ip4|ip6|dns/…/tcp/…`` address; ``None`` for any other.

    Args:
        listening: port 0 is one too: it stands for any free port.
    """
    parts = multiaddr.split("/")
    if (
        len(parts) != 5
        or parts[0]
        or parts[3] != "tcp"
        or parts[1] not in ("ip4", "ip6", "dns", "dns4", "dns6")
    ):
        return None
    if not re.fullmatch("[0-9]{1,5}", parts[4]) or not parts[2]:
        return None
    port = int(parts[4])
    return (parts[2], port) if (0 if listening else 1) <= port < 65536 else None


def version_of(multiaddr: str) -> IPVersion | None:
    """4 or 6, of an address whose host is one and no name."""
    target = host_and_port(multiaddr)
    try:
        return None if target is None else ipaddress.ip_address(target[0]).version
    except ValueError:
        return None


def versions_of(multiaddrs: Iterable[str]) -> frozenset[IPVersion]:
    """The IP versions of several addresses."""
    return frozenset(version for a in multiaddrs if (version := version_of(a)))


def is_private(host: str) -> bool:
    """Whether an address belongs to one network only, this machine's own among them; a name does not."""
    try:
        return not ipaddress.ip_address(host).is_global
    except ValueError:
        return False


def is_loopback(host: str) -> bool:
    """Whether only the machine itself is reached there."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:  # a name
        return host == "localhost"


def circuit_address(relay: str, peer: PeerId) -> str:
    """How a place at a relay is announced: the relay's direct carrier and its id."""
    return f"{relay}/p2p/{peer}{_CIRCUIT}"


def split_circuit(multiaddr: str) -> tuple[str, PeerId] | None:
    """The relay's address and id of a circuit address; ``None`` for any other."""
    relay, found, peer = multiaddr.removesuffix(_CIRCUIT).rpartition("/p2p/")
    if not multiaddr.endswith(_CIRCUIT) or not found or host_and_port(relay) is None:
        return None
    return (relay, PeerId(peer)) if peer and "/" not in peer else None


def split_bootstrap(multiaddr: str) -> tuple[str, PeerId]:
    """A bootstrap address without its peer, and the peer.

    Raises:
        UsageError: it does not end in ``/p2p/<peer id>``.
    """
    address, found, peer = multiaddr.rpartition("/p2p/")
    if not found or not peer or "/" in peer or not address.startswith("/"):
        raise UsageError(
            f"{multiaddr!r} is no address to join through",
            check="write it like /ip4/192.0.2.1/tcp/4001/p2p/12D3KooW…",
        )
    return address, PeerId(peer)

"""Which addresses we announce, and which announced addresses we are willing to dial."""

from __future__ import annotations

import ipaddress
import re
import socket
from collections.abc import Iterable, Sequence

import psutil

from shoal.errors import UsageError
from shoal.types import PeerId

_UNREACHABLE = ("0.0.0.0", "::")
_METADATA = frozenset(map(ipaddress.ip_address, ("169.254.169.254", "fd00:ec2::254", "100.100.100.200")))
"""Where clouds tell a machine its credentials."""


def expand(host: str, port: int) -> tuple[str, ...]:
    """The multiaddrs under which a listener on ``host`` can be reached.

    A listener on every interface is announced with the address of each; with loopback only where there is
    no other.
    """
    if host not in _UNREACHABLE:
        return (to_multiaddr(host, port),)
    found = sorted(_interfaces(6 if ":" in host else 4), key=lambda a: (a.is_private, str(a)))
    outward = [a for a in found if not a.is_loopback and not a.is_link_local]
    chosen = outward or [a for a in found if a.is_loopback]
    return tuple(to_multiaddr(str(address), port) for address in chosen[:8])


def _interfaces(version: int) -> set[ipaddress.IPv4Address | ipaddress.IPv6Address]:
    """The addresses of this machine. A listener on ``::`` takes IPv6 alone, one on ``0.0.0.0`` IPv4 alone."""
    family = socket.AF_INET6 if version == 6 else socket.AF_INET
    texts = (a.address for group in psutil.net_if_addrs().values() for a in group if a.family == family)
    return {ipaddress.ip_address(text) for text in texts}


def to_multiaddr(host: str, port: int) -> str:
    """``/ip4/…/tcp/…`` or ``/ip6/…/tcp/…``."""
    version = 6 if ":" in host else 4
    return f"/ip{version}/{host}/tcp/{port}"


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


def dialable(multiaddr: str, own: Iterable[str]) -> bool:
    """Whether an address that a peer announced may be dialled.

    Refused: what is no plain TCP address; unspecified, multicast, reserved and link-local hosts, and the
    metadata services of clouds; loopback, unless we are on loopback ourselves; private hosts, unless we are
    on a private network ourselves (libp2p/specs#536). Names are refused: they could stand for any of these.

    Args:
        own: our own addresses, as :func:`expand` gives them.
    """
    target = _ip(multiaddr)
    if target is None or target in _METADATA or target.is_unspecified or target.is_multicast:
        return False
    if target.is_link_local or (target.is_reserved and not target.is_loopback):  # ::1 is in a reserved range
        return False
    if not (target.is_loopback or target.is_private):
        return True
    ours = [ip for ip in map(_ip, own) if ip is not None]
    if target.is_loopback:
        return any(ip.is_loopback for ip in ours)
    return any(ip.is_private for ip in ours)


def _ip(multiaddr: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    found = host_and_port(multiaddr)
    if found is None:
        return None
    try:
        ip = ipaddress.ip_address(found[0])
    except ValueError:
        return None
    mapped = ip.ipv4_mapped if isinstance(ip, ipaddress.IPv6Address) else None
    return mapped or ip


def split_bootstrap(multiaddr: str) -> tuple[str, PeerId]:
    """A bootstrap address without its peer, and the peer.

    Raises:
        UsageError: it does not end in ``/p2p/<peer id>``.
    """
    address, found, peer = multiaddr.rpartition("/p2p/")
    if not found or not peer or "/" in peer or not address.startswith("/"):
        raise UsageError(
            f"{multiaddr!r} is no address to join through",
            check="one looks like /ip4/192.0.2.1/tcp/4001/p2p/12D3KooW…",
        )
    return address, PeerId(peer)


def without(addresses: Sequence[str], own: Iterable[str]) -> list[str]:
    """Those of ``addresses`` that may be dialled."""
    own = tuple(own)
    return [address for address in addresses if dialable(address, own)]

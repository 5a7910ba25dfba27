"""Which addresses we announce, and how they are written. Which ones we dial: :mod:`shoal.net.dialable`."""

from __future__ import annotations

import ipaddress
import re
import socket

import psutil

from shoal.errors import UsageError
from shoal.types import PeerId

_UNREACHABLE = ("0.0.0.0", "::")
_CIRCUIT = "/p2p-circuit"


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

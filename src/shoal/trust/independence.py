"""What can be told of whether two peers are one operator's: hints, and no more. Pure.

A peer is a key, and keys cost nothing; so do, nearly, addresses. Who shares a key or a host with another is
counted as one with it, and so is who says of no host that it is there: nothing shows that they are two. Who
shares a network may well be another, and is taken after those who do not.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

HOST_BITS = {4: 32, 6: 64}
"""Of an address, what one machine has for itself: an IPv6 host is given a network of 64 bits."""
NETWORK_BITS = {4: 24, 6: 48}
"""The same of one site."""

Closeness = Literal[0, 1, 2]
"""0: nothing says that they are one; 1: one network; 2: one key or host, or nobody knows where one is."""


@dataclass(frozen=True, slots=True)
class Whereabouts:
    """Of one peer, or of several that did something together."""

    peers: frozenset[str] = frozenset()
    hosts: frozenset[str] = frozenset()
    networks: frozenset[str] = frozenset()
    own: bool = False
    """Whether it is this machine, which is nobody else's."""


OWN = Whereabouts(own=True)


def whereabouts(peers: Iterable[str], hosts: Iterable[str]) -> Whereabouts:
    """Of peers that say they are at these hosts: addresses without a port, or names."""
    named = list(hosts)
    return Whereabouts(
        frozenset(peers),
        frozenset(_part(host, HOST_BITS, host.count(".") + 1) for host in named),
        frozenset(_part(host, NETWORK_BITS, 2) for host in named),
    )


def _part(host: str, bits: dict[int, int], labels: int) -> str:
    """A network that a host is in; of a name, the last so many labels."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return ".".join(host.lower().rstrip(".").split(".")[-labels:])
    return str(ipaddress.ip_network((address, bits[address.version]), strict=False))


def closeness(one: Whereabouts, other: Whereabouts) -> Closeness:
    """How much says that two are one operator's."""
    if one.own or other.own:
        return 0
    if one.peers & other.peers or not (one.hosts and other.hosts) or one.hosts & other.hosts:
        return 2
    return 1 if one.networks & other.networks else 0


def apart(one: Whereabouts, other: Whereabouts) -> bool:
    """Whether two may be counted as two: each is known to be where the other is not."""
    return closeness(one, other) < 2

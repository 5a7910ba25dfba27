"""What can be told of whether two peers are one operator's: hints, and no more. Pure.

A peer is a key, and keys cost nothing; so do, nearly, addresses. Who shares a key or a host with another, or
announces the same operator (:mod:`.operator`), is counted as one with it, and so is who says of no host that
it is there: nothing shows that they are two. Who shares a network may well be another, and is taken after
those who do not.

Where a channel to a peer comes from is known, and what the peer says of its hosts then counts for nothing:
else it could say that it is where others are, and have them left out. Names count for nothing at all, as
anybody can have one for any address. Addresses of private networks are the same everywhere: they tell two
peers apart only where neither has another one, so that both are on the network of whoever asks.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

HOST_BITS = {4: 32, 6: 64}
"""Of an address, what one machine has for itself: an IPv6 host is given a network of 64 bits."""
NETWORK_BITS = {4: 24, 6: 48}
"""The same of one site."""
LOCAL = tuple(
    ipaddress.ip_network(text)
    for text in (
        "10.0.0.0/8",
        "172.16.0.0/12",
        "192.168.0.0/16",
        "100.64.0.0/10",
        "169.254.0.0/16",
        "127.0.0.0/8",
        "fc00::/7",
        "fe80::/10",
        "::1/128",
    )
)
"""Addresses that many machines of the world have."""
BRIDGES = ipaddress.ip_network("172.17.0.0/16")
"""Docker's own network: on each machine that has it another one, with the same addresses."""

Closeness = Literal[0, 1, 2]
"""0: nothing says that they are one; 1: one network; 2: one key, host or operator, or nobody knows where one
is."""
_Address = ipaddress.IPv4Address | ipaddress.IPv6Address


@dataclass(frozen=True, slots=True)
class Whereabouts:
    """Of one peer, or of several that did something together."""

    peers: frozenset[str] = frozenset()
    hosts: frozenset[str] = frozenset()
    """Where it is in the world."""
    networks: frozenset[str] = frozenset()
    local: frozenset[str] = frozenset()
    """Where it is on a private network."""
    local_networks: frozenset[str] = frozenset()
    seen: bool = False
    """Whether it was seen there; else it says so."""
    own: bool = False
    """Whether it is this machine, which is nobody else's."""
    operators: frozenset[str] = frozenset()
    """Whose it is, where that was announced and signed."""

    @property
    def known(self) -> bool:
        """Whether there is anything to tell it from others by, beside its key."""
        return self.own or bool(self.hosts or self.local)


OWN = Whereabouts(own=True)


def whereabouts(
    peers: Iterable[str], hosts: Iterable[str], *, seen: bool = False, operators: Iterable[str] = ()
) -> Whereabouts:
    """Of peers at these hosts: addresses without a port. Names are left out."""
    found = [address for host in hosts if (address := _address(host)) is not None]
    world = [address for address in found if not _within(address, LOCAL)]
    local = [address for address in found if _within(address, LOCAL)]
    local = [address for address in local if not _within(address, [BRIDGES])] or local
    return Whereabouts(
        frozenset(peers),
        frozenset(_part(address, HOST_BITS) for address in world),
        frozenset(_part(address, NETWORK_BITS) for address in world),
        frozenset(str(address) for address in local),
        frozenset(_part(address, NETWORK_BITS) for address in local),
        seen,
        operators=frozenset(operators),
    )


def together(several: Sequence[Whereabouts]) -> Whereabouts:
    """Of peers that did something together: known only where each of them is."""
    peers = frozenset[str]().union(*(one.peers for one in several))
    operators = frozenset[str]().union(*(one.operators for one in several))
    if not all(one.known for one in several):
        return Whereabouts(peers, operators=operators)
    return Whereabouts(
        peers,
        frozenset[str]().union(*(one.hosts for one in several)),
        frozenset[str]().union(*(one.networks for one in several)),
        frozenset[str]().union(*(one.local for one in several)),
        frozenset[str]().union(*(one.local_networks for one in several)),
        all(one.seen for one in several),
        operators=operators,
    )


def _address(host: str) -> _Address | None:
    """An address as it is meant: an IPv4 one may be written as IPv6, too."""
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address


def _within(address: _Address, networks: Iterable[ipaddress.IPv4Network | ipaddress.IPv6Network]) -> bool:
    return any(address in network for network in networks if network.version == address.version)


def _part(address: _Address, bits: dict[int, int]) -> str:
    """The network that an address is in."""
    return str(ipaddress.ip_network((address, bits[address.version]), strict=False))


def closeness(one: Whereabouts, other: Whereabouts) -> Closeness:
    """How much says that two are one operator's."""
    if one.own or other.own:
        return 0
    if one.operators & other.operators:
        return 2
    if one.peers & other.peers or not (one.known and other.known):
        return 2
    if one.hosts and other.hosts:
        return 2 if one.hosts & other.hosts else 1 if one.networks & other.networks else 0
    if one.hosts or other.hosts:  # one is on the network of whoever asks, if it is where it says
        return 0 if one.seen and other.seen else 2
    return 2 if one.local & other.local else 1 if one.local_networks & other.local_networks else 0


def apart(one: Whereabouts, other: Whereabouts) -> bool:
    """Whether two may be counted as two: each is known to be where the other is not."""
    return closeness(one, other) < 2

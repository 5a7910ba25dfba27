"""Which of a peer's announced addresses we dial, and which way each of them is. Pure.

A peer announces the addresses of its interfaces, public ones first, then those that its router gives it, then
its places at relays. A private address means something on one network alone, and on another it is somebody
else's. So it is dialled where we are on that network: one of our interfaces is, or the same router speaks for
us both.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from shoal.net.addresses import host_and_port, is_private, split_circuit
from shoal.net.dialable import LocalNetworks
from shoal.net.reach.relay_session import RelayAddress
from shoal.types import PeerAddress, Way

RELAYS_LIMIT = 4
"""Addresses of relays that are looked at of one peer: it holds places at two, which have one or two each."""


@dataclass(frozen=True, slots=True)
class Target:
    """An address to dial, and the way that it is."""

    host: str
    port: int
    way: Way


def direct_targets(address: PeerAddress, nearby: LocalNetworks, ours: str | None) -> list[Target]:
    """Where the peer's direct carrier is dialled: on a network of ours first, then in public.

    Args:
        ours: the public address that our own router speaks with, if it is known.
    """
    found: list[Target] = []
    private_before = False
    for multiaddr in fit(address, address.direct, nearby, ours):
        host, port = host_and_port(multiaddr) or ("", 0)
        private = is_private(host)
        private_before = private_before or private or _private_before(address.direct, multiaddr)
        found.append(Target(host, port, "lan" if private else "mapped" if private_before else "public"))
    order: tuple[Way, ...] = ("lan", "public", "mapped")
    return sorted(found, key=lambda target: order.index(target.way))


def fit(
    address: PeerAddress, addresses: Sequence[str], nearby: LocalNetworks, ours: str | None
) -> tuple[str, ...]:
    """Those of a peer's ``addresses`` that may be dialled, in their order."""
    theirs = router_host(address.direct)
    behind_relay = bool(relays_of(address))

    def means_us(multiaddr: str) -> bool:
        host = (host_and_port(multiaddr) or ("", 0))[0]
        if not is_private(host):
            return True
        if ours is not None and theirs is not None:
            return ours == theirs
        # Nothing tells which network it is: members on sites of several networks need the whole range, but
        # who says that it is behind a router means the network there.
        return nearby.on_interface(multiaddr) or not behind_relay

    return tuple(a for a in nearby.fit(addresses) if means_us(a))


def router_host(direct: Sequence[str]) -> str | None:
    """The public address that a peer's router gives it, by what it announces; ``None`` where it has none."""
    return next(
        (
            target[0]
            for a in direct
            if (target := host_and_port(a)) is not None
            and not is_private(target[0])
            and _private_before(direct, a)
        ),
        None,
    )


def relays_of(address: PeerAddress) -> list[RelayAddress]:
    """The relays at which a peer holds a place, each once for every address that it has."""
    found: list[RelayAddress] = []
    for multiaddr in address.direct:
        circuit = split_circuit(multiaddr)
        target = host_and_port(circuit[0]) if circuit else None
        if circuit and target:
            found.append(RelayAddress(circuit[1], *target))
    return found[:RELAYS_LIMIT]


def _private_before(direct: Sequence[str], multiaddr: str) -> bool:
    before = direct[: direct.index(multiaddr)] if multiaddr in direct else ()
    return any(is_private((host_and_port(a) or ("", 0))[0]) for a in before)

"""Of the relays that a peer knows: where it wants its places, and whom it forgets. Pure.

Whoever has one network can have any number of keys there, and what is in one network is mostly lost with it.
So what counts are networks: places are in two, and a table that is full forgets of the network with the most.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence

from shoal.net.handshake_backlog import network_of
from shoal.net.reach.relay_session import RelayAddress
from shoal.types import PeerId

PLACES = 2
"""Relays at which a peer behind a router holds a place: one may die."""

Networks = frozenset[str]


def networks_of(addresses: Iterable[RelayAddress]) -> Networks:
    """The networks in which a relay is: one of each IP version that it has."""
    return frozenset(network_of(address.host) for address in addresses)


def is_place_wanted(relay: Networks, taken: Sequence[Networks]) -> bool:
    """Whether a place at one more relay is wanted.

    Args:
        relay: the networks that it is in.
        taken: the same of each relay at which there is a place, or is one soon. Where these have one network
            in common, one more is wanted outside of it.
    """
    if len(taken) < PLACES:
        return True
    return len(taken) == PLACES and bool(frozenset[str].intersection(*taken)) and not _shared(relay, taken)


def nearness(relay: Networks, taken: Sequence[Networks]) -> int:
    """For the order in which relays are tried: 1 for those in a network where there is a place already."""
    return int(_shared(relay, taken))


def one_too_many(known: Mapping[PeerId, Sequence[RelayAddress]], held: Collection[PeerId]) -> PeerId | None:
    """Whom to forget, so that one network's relays push out nobody else's.

    Of the network that has most of them, the one that came last; where each has a network of its own, the one
    that came first.

    Args:
        known: in the order in which they came.
        held: where there is a place: these stay.
    """
    networks = {peer: networks_of(addresses) for peer, addresses in known.items()}
    counts = Counter(network for many in networks.values() for network in many)
    spare = [
        (crowd := max((counts[network] for network in many), default=0), at if crowd > 1 else -at, peer)
        for at, (peer, many) in enumerate(networks.items())
        if peer not in held
    ]
    return max(spare)[2] if spare else None


def _shared(relay: Networks, taken: Iterable[Networks]) -> bool:
    return any(relay & networks for networks in taken)

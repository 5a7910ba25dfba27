"""What kind of router we are behind, and at which address others can see us: from what observers say. Pure.

An observer is a peer that we have dialled from our direct carrier's port: it sees the address that the router
gave that port. It may lie. So an address is believed when two observers on different networks have seen the
same one, and no single peer can have us announce an address that is somebody else's.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from shoal.net.addresses import host_and_port
from shoal.net.handshake_backlog import network_of
from shoal.types import NatKind

OBSERVERS_LIMIT = 16
"""Observers that are remembered; of more, those heard last."""
AGREEING = 2
"""Observers, each on a network of its own, that make an address believed."""


@dataclass(frozen=True, slots=True)
class Observation:
    """One observer's word."""

    observer: str
    """The host at which we dialled it."""
    seen: str
    """The multiaddr that it saw us come from."""


def add_observation(held: Sequence[Observation], new: Observation) -> tuple[Observation, ...]:
    """``held`` with ``new`` in place of what the same network said before, within the limit.

    By network, so that one subscriber's many machines are one voice.
    """
    network = network_of(new.observer)
    kept = [one for one in held if network_of(one.observer) != network]
    return (*kept, new)[-OBSERVERS_LIMIT:]


def believed_address(observations: Sequence[Observation]) -> str | None:
    """The public address that enough observers agree on; of several, the one on which they agreed last.

    Providers give homes other addresses, and what was seen before is not asked for again.
    """
    said: dict[str, dict[str, int]] = {}
    """By address, when each network last saw it: its place among all words, which are in their order."""
    for at, one in enumerate(observations):
        if _is_public(one.seen):
            said.setdefault(one.seen, {})[network_of(one.observer)] = at
    agreed = {seen: sorted(ats.values())[-AGREEING] for seen, ats in said.items() if len(ats) >= AGREEING}
    return max(agreed, key=lambda seen: agreed[seen]) if agreed else None


def nat_kind(observations: Sequence[Observation], own: Collection[str]) -> NatKind:
    """What the observers' words make of the router.

    Args:
        own: the addresses of our own interfaces with the direct carrier's port, as multiaddrs. To be seen at
            one of them is believed of anybody: we know that it is ours.
    """
    public = [one for one in observations if _is_public(one.seen)]
    if any(one.seen in own for one in public):
        return "none"
    if believed_address(public) is not None:
        return "cone"
    return "symmetric" if len({network_of(one.observer) for one in public}) >= AGREEING else "unknown"


def best_kind(kinds: Collection[NatKind]) -> NatKind:
    """Of the kinds that two peers may use, the one with which others come about most easily."""
    order: tuple[NatKind, ...] = ("none", "cone", "unknown", "symmetric")
    for kind in order:
        if kind in kinds:
            return kind
    return "symmetric"


def is_confirmed(host: str, observations: Sequence[Observation]) -> bool:
    """Whether observers bear out what our router says of its own public address.

    Two of them who agree, as with any address; where only one has spoken, the router and that one are two.
    """
    same_version = [one for one in observations if (":" in _host(one.seen)) == (":" in host)]
    words = {(network_of(one.observer), _host(one.seen)) for one in same_version if _is_public(one.seen)}
    agreeing = sum(seen == host for _, seen in words)
    return agreeing >= min(AGREEING, max(1, len({network for network, _ in words})))


def may_meet(ours: NatKind, theirs: NatKind) -> bool:
    """Whether two peers that both dial each other at once may get through.

    A symmetric router gives the dial another port than anybody was told, which only an open door takes.
    """
    behind = {"cone", "symmetric"}
    return not ("symmetric" in (ours, theirs) and ours in behind and theirs in behind)


def _is_public(multiaddr: str) -> bool:
    target = host_and_port(multiaddr)
    try:
        return target is not None and ipaddress.ip_address(target[0]).is_global
    except ValueError:
        return False


def _host(multiaddr: str) -> str:
    return (host_and_port(multiaddr) or ("", 0))[0]

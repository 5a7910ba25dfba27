"""Who convenes a round, when it closes, and who has fallen behind: functions of what a member knows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Set
from dataclasses import dataclass
from hashlib import sha256

from shoal.training.federated.statements import MemberStanding, RoundPlan
from shoal.types import PeerId

GRACE_S = 3.0
"""How long each next member waits, beyond the one before it, until it convenes the round in its place."""


@dataclass(frozen=True, slots=True)
class RunSnapshot:
    """What a member knows, of itself too."""

    own: PeerId
    run: bytes
    round: int
    state: bytes
    """The digest that its round began with."""
    standings: Mapping[PeerId, MemberStanding]
    """The last one of each member."""
    members: Set[PeerId]
    """Everybody who takes part, whether heard to stand anywhere or not."""
    gone: Set[PeerId]
    """Who cannot be reached, or has failed in the round before."""
    first_ready: float | None
    """When the first member, itself included, was known to be ready for the round."""
    last_ready: float | None
    """When the last of those who are ready was first known to be."""


def ready_members(known: RunSnapshot) -> list[PeerId]:
    """Who is ready for the round with the same adapter, first who is to convene it.

    The order is another one in each round, and nobody chooses it: by a hash of run, round and peer.
    """
    found = [
        peer
        for peer, standing in known.standings.items()
        if peer not in known.gone
        and standing.ready
        and (standing.round, standing.state) == (known.round, known.state)
    ]
    return sorted(found, key=lambda peer: _rank(known.run, known.round, peer))


def convenes_at(known: RunSnapshot, least: int, gather_s: float) -> float | None:
    """When this member publishes a plan, if none comes until then.

    Turns are counted from the last one who became ready, for whom all were waiting: counted from the first,
    the turns of many would have passed by then, and each would take the plan that it heard of first.

    Returns:
        ``None`` while it does not: too few are ready.
    """
    ready = ready_members(known)
    if known.own not in ready or len(ready) < least or known.first_ready is None or known.last_ready is None:
        return None
    still = set(known.members) - set(known.gone) - set(ready)
    gathered = known.first_ready + gather_s if still else known.first_ready
    return max(gathered, known.last_ready) + GRACE_S * ready.index(known.own)


def has_enough(plan: RoundPlan, known: RunSnapshot) -> bool:
    """Whether most of those who are known to be ready are in a plan: a smaller one is no round."""
    ready = ready_members(known)
    return len(set(plan.peers) & set(ready)) >= most_of(len(ready))


def most_of(ready: int) -> int:
    """The fewest that are more than half of so many."""
    return ready // 2 + 1


def plan_fault(plan: RoundPlan, known: RunSnapshot, least: int) -> str:
    """Why a plan does not concern this member, or cannot be; empty where it holds.

    Whoever convenes is not believed: with a plan of few members it would know what each of them has added.
    """
    if plan.round != known.round:
        return f"it is of round {plan.round}"
    if plan.state != known.state:
        return "its round begins with another adapter"
    if PeerId(plan.peer) not in plan.peers:
        return "who convened it is not in it"
    if known.own not in plan.peers:
        return "this member is not in it"
    return _share_fault(plan, known, least)


def _share_fault(plan: RoundPlan, known: RunSnapshot, least: int) -> str:
    """Why a plan gives its members other shares of the round than they should have."""
    if len(plan.members) < least:
        return f"it has {len(plan.members)} members, and the terms ask for {least}"
    if not has_enough(plan, known):
        return "it is without most of those who are ready"
    for member in plan.members:
        said = known.standings.get(PeerId(member.peer))
        ready = said is not None and said.ready and (said.round, said.state) == (plan.round, plan.state)
        if said is not None and ready and said.examples != member.examples:
            return f"{member.peer} has another number of examples in it than it says"
    return ""


def ahead(known: RunSnapshot) -> tuple[int, bytes] | None:
    """The round and digest that this member should have, where most of the others are in a later round, or
    more of them have another adapter in its own.

    From those that are behind it nothing follows. With as many for its own digest as for another, the smaller
    one holds, so that not both sides change.
    """
    others = [
        (standing.round, standing.state)
        for peer, standing in known.standings.items()
        if peer != known.own and peer not in known.gone
    ]
    own = (known.round, known.state)
    later = Counter(where for where in others if where[0] > known.round)
    if later:
        where, count = max(later.items(), key=lambda held: (held[1], held[0][0]))
        return where if 2 * count > len(others) else None
    beside = Counter([own, *(where for where in others if where[0] == known.round)])
    best = min(beside, key=lambda where: (-beside[where], where[1]))
    return None if best == own else best


def _rank(run: bytes, round: int, peer: PeerId) -> bytes:
    return sha256(run + round.to_bytes(8, "big") + peer.encode()).digest()

"""Consensus among replicas: an answer that several peers compute hop by hop, and who of them lied. Pure.

Every replica of an answer goes over hops with the same boundaries and begins with the same rows. First each
hop commits to all its receipts, by a hash that holds the question's nonce and its own id; only then it
reveals them. So who has computed nothing can take nobody's word for its own: it must know its roots before
anybody has shown any, and a commitment is good for one peer alone.

What the hops have signed is then compared, hop by hop and window by window, among those that were given the
same rows. Where they differ first, a third party computes that hop again up to that window. A hop is named
where a third party and a replica that is apart from it have other rows, the same ones to the bit, and more
who are apart from each other say so than say anything else. What cannot be decided so is left open. What this
machine computes itself, with weights that it has checked, is no voice among others: it is right.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations

from blake3 import blake3

from shoal.trust.independence import Whereabouts, apart, closeness
from shoal.trust.receipt import Receipt
from shoal.types import PeerId

CONTEXT = b"shoal commitment 1\n"
REPLICAS = 3
"""How many compute an answer, with the hops that gave it: of three, one may lie and one be lazy."""
CHECKS = 3
"""Third parties that are asked about one hop, at most."""
CONFIRMED = 2
"""So many who are apart must agree before what a hop has computed counts as confirmed."""


def commitment(nonce: bytes, peer: str, receipts: Sequence[Receipt]) -> bytes:
    """What a peer says of its receipts before it shows them: the last one stands on all others.

    Args:
        receipts: of one session, at least one.
    """
    return blake3(CONTEXT + nonce + peer.encode() + receipts[-1].hash).digest()


@dataclass(frozen=True, slots=True)
class ReplicaWork:
    """What one hop of one replica has signed, and committed to before, by window."""

    at: Whereabouts
    came: tuple[bytes, ...]
    went: tuple[bytes, ...]


ReplicaRing = Sequence[ReplicaWork | None]
"""By hop; ``None`` where its receipts do not hold, or it has committed to none."""


@dataclass(frozen=True, slots=True)
class HopCheck:
    """What a third party made of the rows that a hop should have been given."""

    by: str
    at: Whereabouts
    went: tuple[bytes, ...]
    """By window, from the first to the one up to which it was asked; of the positions that replicas sent."""
    checked: bool = False
    """Whether this machine computed it, with weights that it has compared with the model's manifest."""


@dataclass(frozen=True, slots=True)
class Disputed:
    """What a third party is to compute: a hop, from the first window to this one."""

    hop: int
    window: int
    givers: tuple[int, ...]
    """The replicas whose hop before has the rows for it."""


@dataclass(frozen=True, slots=True)
class NamedHop:
    """A hop of a replica that has signed other rows than its blocks give."""

    replica: int
    hop: int
    window: int
    by: tuple[str, ...]
    """The third parties that found so."""


@dataclass(slots=True)
class ReplicaComparison:
    """What is known by now."""

    named: list[NamedHop] = field(default_factory=list[NamedHop])
    alone: list[str] = field(default_factory=list[str])
    """Third parties that were contradicted by all that was settled."""
    right: list[tuple[int, ...]] = field(default_factory=list[tuple[int, ...]])
    """By hop, up to the one at which nothing could be settled: the replicas that computed what is right."""
    confirmed: list[bool] = field(default_factory=list[bool])
    """By hop: whether enough who are apart agree in it."""
    disputed: Disputed | None = None
    """What must be known to go on."""
    open: str = ""
    """Why nothing more could be settled; empty where it was, or may yet be."""


def compare(
    sent: Sequence[bytes], replicas: Sequence[ReplicaRing], checks: Mapping[int, Sequence[HopCheck]]
) -> ReplicaComparison:
    """Compare what replicas have signed, as far as it can be settled.

    Args:
        sent: the roots of the rows that the client sent each first hop, by window.
        replicas: the first is the one that gave the answer.
        checks: what third parties have found, by hop. Call again with what ``disputed`` asks for.
    """
    found, given = ReplicaComparison(), tuple(sent)
    for hop in range(len(replicas[0])):
        works = {
            number: work
            for number, ring in enumerate(replicas)
            if (work := ring[hop]) is not None and work.came == given
        }
        if not works:
            found.open = f"of hop {hop} no receipts hold"
            return found
        right = _settle(found, hop, works, checks.get(hop, ()))
        if right is None:
            return found
        found.right.append(tuple(right))
        given = next(iter(right.values())).went
    return found


def _settle(
    found: ReplicaComparison, hop: int, works: dict[int, ReplicaWork], checks: Sequence[HopCheck]
) -> dict[int, ReplicaWork] | None:
    """The replicas of one hop that are right, of those that were given the same; ``None``: not known."""
    windows = len(next(iter(works.values())).went)
    alone = set[str]()
    givers = tuple(works)
    for window in range(windows):
        said, own = {work.went[window] for work in works.values()}, _own_root(checks, window)
        if len(said) == 1 and (own is None or own in said):
            continue
        decided = own or _decide(works, checks, window)
        if decided is None:
            _ask(found, Disputed(hop, window, givers), checks)
            return None
        asked = [check for check in checks if len(check.went) > window]
        by = tuple(check.by for check in asked if check.went[window] == decided)
        alone |= {check.by for check in asked if check.went[window] != decided}
        found.named += [
            NamedHop(n, hop, window, by) for n, one in works.items() if one.went[window] != decided
        ]
        works = {number: work for number, work in works.items() if work.went[window] == decided}
        if not works:
            found.alone += sorted(alone)
            found.open = f"of hop {hop} no replica has what this machine computes"
            return None
    confirmed = _confirmed(works, checks)
    if not confirmed:
        if len(checks) < CHECKS:
            found.disputed = Disputed(hop, windows - 1, tuple(works))
            return None
        found.open = found.open or (
            f"hop {hop} is not confirmed: of those who are apart from each other, too few have what its "
            "replicas have, or as many have something else"
        )
    found.alone += sorted(alone)
    found.confirmed.append(confirmed)
    return works


def _own_root(checks: Sequence[HopCheck], window: int) -> bytes | None:
    return next((c.went[window] for c in checks if c.checked and len(c.went) > window), None)


def _confirmed(works: Mapping[int, ReplicaWork], checks: Sequence[HopCheck]) -> bool:
    """Whether enough who are apart agree with replicas that agree, and more than with anything else."""
    went = next(iter(works.values())).went
    said = {went: [work.at for work in works.values()]}
    for check in checks:
        if check.went == went and check.checked:
            return True
        if len(check.went) == len(went):
            said.setdefault(check.went, []).append(check.at)
    most = strength(said.pop(went))
    return most >= CONFIRMED and all(strength(others) < most for others in said.values())


def _ask(found: ReplicaComparison, disputed: Disputed, checks: Sequence[HopCheck]) -> None:
    if len(checks) < CHECKS:
        found.disputed = disputed
    else:
        found.open = (
            f"replicas of hop {disputed.hop} differ from window {disputed.window} on, and no two who are "
            "apart from each other agree against the others: nobody is blamed"
        )


def _decide(works: Mapping[int, ReplicaWork], checks: Sequence[HopCheck], window: int) -> bytes | None:
    """The root that a window has, where that can be told."""
    said: dict[bytes, list[Whereabouts]] = {}
    confirmed = set[bytes]()
    for work in works.values():
        said.setdefault(work.went[window], []).append(work.at)
    for check in checks:
        if len(check.went) > window:
            root = check.went[window]
            if any(apart(check.at, at) for at in said.get(root, ())):
                confirmed.add(root)
            said.setdefault(root, []).append(check.at)
    ranked = sorted(said, key=lambda root: strength(said[root]), reverse=True)
    first = strength(said[ranked[0]])
    second = strength(said[ranked[1]]) if len(ranked) > 1 else 0
    return ranked[0] if ranked[0] in confirmed and first >= CONFIRMED and first > second else None


def strength(places: Sequence[Whereabouts]) -> int:
    """Of those who say the same, which are few, the most that are all apart from each other."""
    for count in range(len(places), 1, -1):
        for some in combinations(places, count):
            if all(apart(one, other) for one, other in combinations(some, 2)):
                return count
    return min(len(places), 1)


# ---- who computes it ----


@dataclass(frozen=True, slots=True)
class ReplicaOffer:
    """A peer that could be a hop of a replica."""

    peer: PeerId
    at: Whereabouts


def choose_replica(
    offers: Sequence[Sequence[ReplicaOffer]], taken: Sequence[Sequence[Whereabouts]]
) -> list[PeerId] | None:
    """One more replica: a peer for each hop, no peer twice; ``None`` where there are too few.

    Those are preferred that share least with whom has computed the same blocks: neither key nor host, then no
    network either. These are hints: addresses cost little, and one operator may have many.

    Args:
        offers: by hop, the best first.
        taken: by hop, where those are who compute it already. They are not taken again.
    """
    ranked = [_ranked(some, beside) for some, beside in zip(offers, taken, strict=True)]
    placed: dict[PeerId, int] = {}

    def place(hop: int, seen: set[PeerId]) -> bool:
        """Find a peer for a hop, if need be by moving others: Kuhn's matching."""
        for peer in ranked[hop]:
            if peer in seen:
                continue
            seen.add(peer)
            if peer not in placed or place(placed[peer], seen):
                placed[peer] = hop
                return True
        return False

    if not all(place(hop, set()) for hop in range(len(ranked))):
        return None
    found = {hop: peer for peer, hop in placed.items()}
    return [found[hop] for hop in range(len(ranked))]


def _ranked(offers: Sequence[ReplicaOffer], beside: Sequence[Whereabouts]) -> list[PeerId]:
    known = frozenset[str]().union(*(at.peers for at in beside))
    free = [offer for offer in offers if offer.peer not in known]

    def near(offer: ReplicaOffer) -> tuple[int, int]:
        """With how many it may be one, and with how many it shares a network. Counted, as one of whom nobody
        knows where it is would otherwise make all offers alike."""
        each = [closeness(offer.at, at) for at in beside]
        return each.count(2), each.count(1)

    free.sort(key=near)
    return [offer.peer for offer in free]

"""Which peers of one model are kept, where there are more than is good. Pure.

Identities cost nothing, so who makes most of them must not decide who is kept. There are two parts:

- *Unlike* ones: peers of all parts of the model alike, and only so many of one network. Where one has to go,
  the older half stays; of the newer one, and who would come, the peer goes that a secret key ranks last. So a
  flood that comes later takes no place of the older half, to come again and again is no use, and nobody can
  make identities that win. Those who have served this machine, and its neighbours, stay, up to half of all
  places. (Places by network and age: Heilman et al., "Eclipse Attacks on Bitcoin's Peer-to-Peer Network",
  2015; keyed ranks: Auvolat et al., "Basalt", 2021.)
- *Drawn* ones: those whom the key ranks first of all that were heard of, drawn by chance from all, no matter
  who speaks how often (min-wise sampling: Bortnikov et al., "Brahms", 2008). What a model lacks is seen from
  them, and how many peers it has: of ``n`` ranks between 0 and 1, so many are below a threshold.
"""

from __future__ import annotations

import hashlib
import ipaddress
from bisect import bisect_left, bisect_right, insort
from collections import defaultdict
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from itertools import islice

from shoal.net.addresses import host_and_port
from shoal.swarm.announcement import Served
from shoal.types import PeerAddress, PeerId

PARTS = 8
"""Of a model, of which a view keeps as many peers each."""
NETWORK_SHARE = 1 / 16
"""Of the places: those that one network may have."""
NETWORK_LEAST = 2
PINNED_SHARE = 1 / 2
"""Of the places: those of proven peers and neighbours, whose connections cost nobody much."""
OLD_SHARE = 1 / 2
GROWN = 4 / 3
"""By so much more of all are drawn where a quarter of those drawn has gone."""


@dataclass(frozen=True, slots=True)
class ViewedPeer:
    """What counts of a peer here."""

    peer: PeerId
    part: int
    """Of the model, that it is in the middle of."""
    network: str
    """As :func:`public_network` has it."""
    rank: float
    """As :class:`SecretRank` has it."""


def part_of(served: Served) -> int:
    """The part of its model that a peer serves."""
    return min(PARTS - 1, (served.start + served.end) * PARTS // (2 * served.n_blocks))


def public_network(address: PeerAddress) -> str:
    """The /24, or /48 in IPv6, of the first public address that a peer says it has; empty where it has none.

    Homes have the same few private networks, so these say nothing of who is like whom.
    """
    for multiaddr in (*address.libp2p, *address.direct):
        found = host_and_port(multiaddr)
        if found is None:
            continue
        try:
            ip = ipaddress.ip_address(found[0])
        except ValueError:
            continue
        if ip.is_global:
            return str(ipaddress.ip_network(f"{ip}/{24 if ip.version == 4 else 48}", strict=False))
    return ""


class SecretRank:
    """A number between 0 and 1 for each name, which nobody can tell who has not the key."""

    def __init__(self, key: bytes) -> None:
        self._key = key

    def __call__(self, name: str) -> float:
        digest = hashlib.blake2b(name.encode(), digest_size=8, key=self._key).digest()
        return int.from_bytes(digest, "big") / 2**64


class ChanceDraw:
    """Peers drawn from all that are heard of, by nothing but chance: those of the least ranks.

    Args:
        most: how many are drawn.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._ranks: dict[PeerId, float] = {}
        self._order: list[tuple[float, PeerId]] = []
        self._threshold = 1.0
        """Up to which rank everybody is drawn who is heard of."""
        self._counted = 1.0
        """Up to which rank everybody who was heard of is here. Less than the threshold from when that has
        risen until others have said something again."""
        self._few = most / GROWN
        """With less than so many the threshold rises."""

    def __len__(self) -> int:
        return len(self._ranks)

    def __contains__(self, peer: PeerId) -> bool:
        return peer in self._ranks

    @property
    def peers(self) -> Collection[PeerId]:
        """Who is drawn."""
        return self._ranks.keys()

    @property
    def estimate(self) -> int:
        """How many there are in all."""
        return round(self._told)

    @property
    def _told(self) -> float:
        """How many those tell who can be counted."""
        return bisect_right(self._order, self._counted, key=_rank_of) / self._counted

    def offer(self, peer: PeerId, rank: float) -> PeerId | None:
        """Somebody was heard of; who is drawn no more."""
        if not self._most or rank > self._threshold or peer in self._ranks:
            return None
        insort(self._order, (rank, peer))
        self._ranks[peer] = rank
        last = None
        if len(self._ranks) > self._most:
            self._threshold, last = self._order.pop()
            del self._ranks[last]
        self._count_all_if_refilled()
        return last

    def remove(self, peer: PeerId) -> bool:
        """Somebody is gone; whether more of the others are drawn from now on."""
        rank = self._ranks.pop(peer, None)
        if rank is None:
            return False
        del self._order[bisect_left(self._order, (rank, peer))]
        self._count_all_if_refilled()
        if self._threshold == 1.0 or len(self._ranks) >= self._few:
            return False
        # Once for each quarter that goes: those who make up for it are heard of only when they speak again.
        self._few = len(self._ranks) / GROWN
        self._threshold = min(1.0, self._threshold * GROWN)
        return True

    def _count_all_if_refilled(self) -> None:
        """Count up to the threshold again, once that tells no fewer."""
        if self._threshold <= self._counted or len(self._ranks) / self._threshold >= self._told:
            self._counted = self._threshold
            self._few = self._most / GROWN


def _rank_of(drawn: tuple[float, PeerId]) -> float:
    return drawn[0]


class PeerSample:
    """The peers of one model.

    Args:
        places: for unlike peers.
        draws: how many are drawn.
    """

    def __init__(self, places: int, draws: int = 0) -> None:
        self._places = places
        self._unlike: dict[PeerId, ViewedPeer] = {}
        """In the order in which they came."""
        self._parts: dict[int, int] = defaultdict(int)
        self._crowds: dict[str, int] = defaultdict(int)
        """Of the unlike ones, how many are of each part, and of each network."""
        self._drawn = ChanceDraw(draws)

    def __len__(self) -> int:
        return len(self._unlike) + sum(peer not in self._unlike for peer in self.drawn)

    def __iter__(self) -> Iterator[PeerId]:
        yield from self._unlike
        yield from (peer for peer in self.drawn if peer not in self._unlike)

    def __contains__(self, peer: PeerId) -> bool:
        return peer in self._unlike or peer in self._drawn

    @property
    def unlike(self) -> Collection[PeerId]:
        """Those who are kept because they are unlike."""
        return self._unlike.keys()

    @property
    def drawn(self) -> Collection[PeerId]:
        """Those who are drawn from all by chance."""
        return self._drawn.peers

    @property
    def networks(self) -> int:
        """In how many networks the unlike ones are; who names none has one of its own."""
        unnamed = self._crowds.get("", 0)
        return len(self._crowds) - bool(unnamed) + unnamed

    @property
    def estimate(self) -> int:
        """How many peers the model has, as far as they were heard of."""
        return max(len(self), self._drawn.estimate)

    def offer(
        self, one: ViewedPeer, proven: Collection[PeerId] = (), neighbours: Collection[PeerId] = ()
    ) -> list[PeerId]:
        """Somebody was heard of who is not here; whether it is kept now, ``in`` tells.

        Args:
            proven: those who have served this machine.
            neighbours: those to whom it is connected.

        Returns:
            Who is kept no more.
        """
        left = {self._drawn.offer(one.peer, one.rank)}  # one may lose both of its places
        if len(self._unlike) < self._places:
            self._add(one)
        else:
            left.add(self._replace(one, proven, neighbours))
        return [peer for peer in left if peer is not None and peer != one.peer and peer not in self]

    def update(self, one: ViewedPeer) -> None:
        """Somebody who is here serves another part, or says that it is elsewhere."""
        before = self._unlike.get(one.peer)
        if before is not None and before != one:
            self._count(before, -1)
            self._count(one, 1)
            self._unlike[one.peer] = one  # with the age that it had
        elif before is None and len(self._unlike) < self._places:
            self._add(one)

    def remove(self, peer: PeerId) -> None:
        """Somebody is gone."""
        self._take_out(peer)
        if self._drawn.remove(peer):
            # Nobody else of those ranks is drawn yet: of these none pushes one out who is not kept besides.
            for one in self._unlike.values():
                self._drawn.offer(one.peer, one.rank)

    def _add(self, one: ViewedPeer) -> None:
        self._unlike[one.peer] = one
        self._count(one, 1)

    def _take_out(self, peer: PeerId) -> None:
        one = self._unlike.pop(peer, None)
        if one is not None:
            self._count(one, -1)

    def _count(self, one: ViewedPeer, by: int) -> None:
        self._parts[one.part] += by
        self._crowds[one.network] += by
        if not self._crowds[one.network]:
            del self._crowds[one.network]  # there are as many as anybody likes

    def _replace(
        self, one: ViewedPeer, proven: Collection[PeerId], neighbours: Collection[PeerId]
    ) -> PeerId | None:
        """Give a peer another one's place, if it is to have one; whose it was."""
        pinned = self._pinned(proven, neighbours)
        newer = islice(self._unlike.values(), int(len(self._unlike) * OLD_SHARE), None)
        free = [other for other in newer if other.peer not in pinned]
        rivals, contested = self._rivals(one, free)
        friend = one.peer in proven or one.peer in neighbours
        if contested and not (friend and len(pinned) < self._places * PINNED_SHARE):
            rivals = [*rivals, one]
        goes = max(rivals or free, key=lambda other: other.rank, default=one)
        if goes is one:
            return None
        self._take_out(goes.peer)
        self._add(one)
        return goes.peer

    def _pinned(self, proven: Collection[PeerId], neighbours: Collection[PeerId]) -> set[PeerId]:
        """Who keeps its place: of too many first the proven, and of those the ones known for longest."""
        if not proven and not neighbours:
            return set()
        served = [peer for peer in self._unlike if peer in proven]
        near = [peer for peer in self._unlike if peer in neighbours and peer not in proven]
        return set([*served, *near][: int(self._places * PINNED_SHARE)])

    def _rivals(self, one: ViewedPeer, free: list[ViewedPeer]) -> tuple[list[ViewedPeer], bool]:
        """Of whom one goes, and whether it may be ``one`` itself that has no place."""
        most = max(NETWORK_LEAST, int(self._places * NETWORK_SHARE))
        if one.network and self._crowds.get(one.network, 0) >= most:
            return [other for other in free if other.network == one.network], True
        crowded = {network for network, count in self._crowds.items() if network and count > most}
        if crowded and (of_them := [other for other in free if other.network in crowded]):
            return of_them, False
        # Of equals its own part: others are no fewer for it.
        largest = max(self._parts, key=lambda part: (self._parts[part], part == one.part))
        return [other for other in free if other.part == largest], largest == one.part

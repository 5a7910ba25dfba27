"""The announcements that are alive now: bounded, newest per peer, gone when they expire. Pure.

Its times are those of a clock that only runs forwards. Times of day, which are in the announcements, come
with the time of day that the swarm has (:mod:`shoal.swarm.clock`).
"""

from __future__ import annotations

import heapq
import math
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import get_args

from shoal.errors import RemoteProtocolError
from shoal.routing.formats import most_served
from shoal.swarm.announcement import Announcement, Served
from shoal.swarm.compare import MAX_PEERS, Part, key_of
from shoal.swarm.crowd import network_of, whom_to_forget
from shoal.types import Digest, Format, ModelShape, PeerId, Span, gaps

USED_KEPT = 256
"""Peers that are remembered for having served us."""
LATELY_TOLD = 64
"""Peers gone lately, or doubted, that every neighbour is told of."""
REMEMBERED_S = 3600.0
"""How long a peer that was lost is remembered after its last word, so that halves of a swarm meet again."""


@dataclass(slots=True)
class _Entry:
    announcement: Announcement
    raw: bytes
    key: bytes
    since: float
    ends: float
    """When the announcement is over."""
    until: float
    """When the peer is taken for gone: earlier, if it is doubted."""
    network: str
    met: float
    """When it was first heard of."""

    @property
    def doubted(self) -> bool:
        return self.until < self.ends


@dataclass(frozen=True, slots=True)
class _Departed:
    sequence: int
    since: float
    """When it was taken for gone."""
    until: float
    key: bytes
    last: Announcement | None
    """What it said when it was last heard; ``None`` if it said goodbye."""


class Directory:
    """Takes announcements in, forgets them when their time is over.

    An announcement lives until it expires by the announcer's clock, and never longer than the lifetime it
    asked for counted from when it came, by ours: a clock ahead of ours makes no ghost.
    """

    def __init__(self, limit: int = MAX_PEERS) -> None:
        self._limit = limit
        self._entries: dict[PeerId, _Entry] = {}
        self._gone: dict[PeerId, _Departed] = {}
        self._next_end = math.inf
        self._used: OrderedDict[PeerId, None] = OrderedDict()
        self.neighbours: frozenset[PeerId] = frozenset()
        """Those whom we are connected to, ourselves among them: they too stay when it is full."""

    def __len__(self) -> int:
        return len(self._entries)

    def take(self, announcement: Announcement, raw: bytes, now: float, wall: float) -> bool:
        """Keep an announcement that :func:`shoal.swarm.announcement.unseal` has passed.

        Returns whether it said something new.

        Raises:
            RemoteProtocolError: it is a replay of an earlier one, or the directory is full.
        """
        self.expire(now)
        peer = PeerId(announcement.peer)
        known = self.sequence(peer)
        if announcement.sequence == known:
            return False
        if announcement.sequence < known:
            raise RemoteProtocolError(f"an announcement of {peer} older than one that we have")
        network = network_of(announcement.address)
        if not (announcement.leaving or peer in self._entries) and len(self._entries) >= self._limit:
            self._make_room(peer, network)
        ends = now + min(announcement.expires - announcement.issued, announcement.expires - wall)
        if announcement.leaving:
            self._entries.pop(peer, None)
            self._depart(peer, _Departed(announcement.sequence, now, ends, key_of(peer), None))
        else:
            self._gone.pop(peer, None)
            old = self._entries.get(peer)
            met = old.met if old else now
            self._entries[peer] = _Entry(announcement, raw, key_of(peer), now, ends, ends, network, met)
        self._next_end = min(self._next_end, ends)
        return True

    def used(self, peer: PeerId) -> None:
        """This peer has served us: whoever comes later does not take its place."""
        self._used[peer] = None
        self._used.move_to_end(peer)
        if len(self._used) > USED_KEPT:
            self._used.popitem(last=False)

    def _make_room(self, peer: PeerId, network: str) -> None:
        friends = self.neighbours | self._used.keys()
        victim = whom_to_forget(self._entries, friends, None if peer in friends else network)
        if victim is None:
            raise RemoteProtocolError(f"the directory is full with {self._limit} peers")
        del self._entries[victim]  # which is no word that it has gone

    def sequence(self, peer: PeerId) -> int:
        """The newest sequence number heard from ``peer``, -1 if none is remembered."""
        entry = self._entries.get(peer) or self._gone.get(peer)
        if isinstance(entry, _Entry):
            return entry.announcement.sequence
        return entry.sequence if entry else -1

    def get(self, peer: PeerId) -> Announcement | None:
        """What a peer said last, if it is there."""
        entry = self._entries.get(peer)
        return entry.announcement if entry else None

    def raw(self, peer: PeerId) -> bytes:
        """The same as it was received, or nothing."""
        entry = self._entries.get(peer)
        return entry.raw if entry else b""

    def is_lost(self, peer: PeerId) -> bool:
        """Whether it is gone without a goodbye."""
        departed = self._gone.get(peer)
        return departed is not None and departed.last is not None

    def drop(self, peer: PeerId, now: float) -> None:
        """Forget a peer that turned out to be gone; its next announcement brings it back."""
        entry = self._entries.pop(peer, None)
        if entry is not None:
            last, until = entry.announcement, max(entry.ends, entry.since + REMEMBERED_S)
            self._depart(peer, _Departed(last.sequence, now, until, entry.key, last))

    def may_doubt(self, peer: PeerId, sequence: int, now: float, settled_s: float) -> bool:
        """Whether a doubt of this word says something: it is the newest, undoubted, and not just come."""
        entry = self._entries.get(peer)
        return (
            entry is not None
            and entry.announcement.sequence == sequence
            and not entry.doubted
            and now - entry.since >= settled_s
        )

    def doubt(self, peer: PeerId, until: float) -> None:
        """Take the peer for gone at ``until`` unless it says something new before."""
        entry = self._entries[peer]
        entry.until = min(entry.until, until)
        self._next_end = min(self._next_end, until)

    def expire(self, now: float) -> None:
        """Forget what is over. The departed are remembered while their last words could be played again."""
        if now < self._next_end:
            return
        for peer in [p for p, entry in self._entries.items() if entry.until <= now]:
            self.drop(peer, now)
        for peer in [p for p, departed in self._gone.items() if departed.until <= now]:
            del self._gone[peer]
        ends = (entry.until for entry in self._entries.values())
        self._next_end = min((*ends, *(departed.until for departed in self._gone.values())), default=math.inf)

    def alive(self, now: float) -> list[Announcement]:
        """Every announcement that has not expired."""
        return [entry.announcement for entry in self._entries.values() if entry.until > now]

    def held(self, part: Part, now: float) -> dict[bytes, int]:
        """The newest word of each peer of a part, by the peers' keys."""
        return {
            entry.key: entry.announcement.sequence
            for entry in self._entries.values()
            if entry.until > now and part.has(entry.key)
        }

    def news(self, part: Part, held: Mapping[bytes, int], now: float) -> list[bytes]:
        """Words about a part, as they were received, that somebody who holds ``held`` lacks.

        Those of whom there is doubt are passed over: who comes now would not hear how it ends.
        """
        return [
            entry.raw
            for entry in self._entries.values()
            if entry.until > now
            and part.has(entry.key)
            and held.get(entry.key, -1) < entry.announcement.sequence
            and not entry.doubted
        ]

    def gone(self, held: Mapping[bytes, int]) -> dict[bytes, int]:
        """The last words of those in ``held`` who are gone by what we know, or doubted, by their keys.

        With them of who has gone last, or is doubted, be they in ``held`` or not.
        """
        departed = {d.key: d.sequence for d in self._gone.values()}
        doubted = {e.key: e.announcement.sequence for e in self._entries.values() if e.doubted}
        over = departed | doubted
        lately = heapq.nlargest(LATELY_TOLD, self._gone.values(), key=lambda departed: departed.since)
        told = {d.key: d.sequence for d in lately} | dict(list(doubted.items())[:LATELY_TOLD])
        return told | {key: over[key] for key, sequence in held.items() if over.get(key, -1) >= sequence}

    def lost(self) -> list[Announcement]:
        """The last words of those who are gone without a goodbye, for a while."""
        return [departed.last for departed in self._gone.values() if departed.last is not None]

    def among(self, gone: Mapping[bytes, int]) -> list[Announcement]:
        """Whom we hold of those who are said to be gone, and have heard nothing newer of."""
        return [
            entry.announcement
            for entry in self._entries.values()
            if gone.get(entry.key, -1) >= entry.announcement.sequence
        ]

    def serving(self, digest: Digest, now: float, format: Format | None = None) -> Iterator[Announcement]:
        """Who serves a span of the model, in ``format`` when one is given."""
        for announcement in self.alive(now):
            served = announcement.served
            if served is not None and served.digest == digest and format in (None, served.format):
                yield announcement

    def models(self, now: float) -> list[ModelShape]:
        """Every model of which some span is served, each once."""
        shapes = {a.served.digest: a.served.shape for a in self.alive(now) if a.served}
        return sorted(shapes.values(), key=lambda shape: shape.name)

    def _depart(self, peer: PeerId, departed: _Departed) -> None:
        self._gone[peer] = departed
        if len(self._gone) > self._limit:
            del self._gone[min(self._gone, key=lambda p: self._gone[p].until)]


def in_order(announcements: Iterable[Announcement]) -> list[Announcement]:
    """Peers as they are shown: by model, then in the order of their blocks."""
    return sorted(announcements, key=lambda a: (a.served.model, a.served.span, a.peer) if a.served else ("",))


def by_model(announcements: Iterable[Announcement]) -> dict[str, list[Served]]:
    """What is served of each model, by its digest."""
    found: dict[str, list[Served]] = {}
    for announcement in announcements:
        if announcement.served is not None:
            found.setdefault(announcement.served.digest, []).append(announcement.served)
    return found


def in_one_format(served: Sequence[Served]) -> tuple[Format, list[Span]]:
    """The format in which the most blocks of a model are served, and the spans in it: a route has one."""
    best = most_served(((one.format, one.span) for one in served), get_args(Format))
    assert best is not None  # somebody serves it: see by_model
    return best, [one.span for one in served if one.format == best]


def coverage(spans: list[Span], n_blocks: int) -> list[int]:
    """How many peers serve each block."""
    counts = [0] * n_blocks
    for span in spans:
        for block in range(span.start, min(span.end, n_blocks)):
            counts[block] += 1
    return counts


def missing(directory: Directory, shape: ModelShape, now: float, format: Format | None = None) -> list[Span]:
    """The blocks of the model that nobody serves."""
    spans = [a.served.span for a in directory.serving(shape.digest, now, format) if a.served]
    return gaps(spans, shape.n_blocks)

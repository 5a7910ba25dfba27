"""The announcements that are alive now: bounded, newest per peer, gone when they expire. Pure.

Its times are those of a clock that only runs forwards. Times of day, which are in the announcements, come
with the time of day that the swarm has (:mod:`shoal.swarm.clock`).
"""

from __future__ import annotations

import math
import random
import secrets
from collections import OrderedDict
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass

from shoal.errors import RemoteProtocolError
from shoal.swarm.announcement import Announcement, operator_of
from shoal.swarm.anti_entropy import MAX_PEERS, DirectoryPart, key_of
from shoal.swarm.coverage import shape_of
from shoal.swarm.eviction import peers_to_evict, stated_network
from shoal.swarm.failure.departed import Departed, DepartedPeers
from shoal.swarm.views.partial_view import PartialView
from shoal.swarm.views.placeless import LastWord, Placeless, words_left
from shoal.swarm.views.rules import ViewRules
from shoal.types import Digest, Format, ModelShape, PeerAddress, PeerId

USED_KEPT = 256
"""Peers that are remembered for having served us."""
LATELY_TOLD = 64
"""Peers gone lately, or suspected, that every neighbour is told of."""
FORGOTTEN_SHARE = 1 / 64
"""Of a full directory: who goes at a time. Then not everybody is looked at for each newcomer of a flood."""


@dataclass(slots=True)
class _Entry:
    announcement: Announcement
    raw: bytes
    key: bytes
    since: float
    ends: float
    """When the announcement is over."""
    until: float
    """When the peer is taken for gone: earlier, if it is suspected."""
    network: str
    met: float
    """When it was first heard of."""
    words: float
    """That it may say at once, as of ``since``."""

    @property
    def digest(self) -> str:
        served = self.announcement.served
        return served.digest if served else ""

    @property
    def suspected(self) -> bool:
        return self.until < self.ends

    @property
    def sequence(self) -> int:
        return self.announcement.sequence

    def said(self, raw: bytes) -> bool:
        return raw == self.raw


class Directory:
    """Takes announcements in, forgets them when their time is over.

    An announcement lives until it expires by the announcer's clock, and never longer than the lifetime it
    asked for counted from when it came, by ours: a clock ahead of ours makes no ghost.

    What a model looks like, this machine knows for certain where it has the model (:meth:`know`). Who
    announces another shape for that digest is not listened to. And who serves such a model keeps its place
    before those who serve something that is of no use here.

    Of a large swarm it keeps a part (:meth:`keep_part`).
    """

    def __init__(self, limit: int = MAX_PEERS, chance: random.Random | None = None) -> None:
        self._limit = limit
        self._random = chance or random.Random()
        self._entries: dict[PeerId, _Entry] = {}
        self._serving: dict[str, dict[PeerId, None]] = {}
        """By the model's digest, those who serve some of it."""
        self._raws: set[bytes] = set()
        self._known: dict[Digest, ModelShape] = {}
        self._gone = DepartedPeers(limit)
        self._next_end = math.inf
        self._used: OrderedDict[PeerId, None] = OrderedDict()
        self.view: PartialView | None = None
        """What it keeps of a large swarm; ``None`` where it keeps all it hears of."""
        self._placeless = Placeless()
        self.own: PeerId | None = None
        """This machine, whose word is kept in any case."""
        self.neighbours: frozenset[PeerId] = frozenset()
        """Those whom we are connected to, ourselves among them: they too stay when it is full."""

    def __len__(self) -> int:
        return len(self._entries)

    def know(self, shapes: Iterable[ModelShape]) -> None:
        """Learn what models of this machine look like; who says something else of one is forgotten."""
        for shape in shapes:
            if self._known.get(shape.digest) == shape:
                continue
            self._known[shape.digest] = shape
            for peer in list(self._serving.get(shape.digest, ())):
                if self._contradicts(self._entries[peer].announcement):
                    self._forget(peer)

    def known(self, digest: Digest) -> ModelShape | None:
        """What a model looks like that this machine has."""
        return self._known.get(digest)

    def _contradicts(self, announcement: Announcement) -> bool:
        """Whether it announces a model that is known here, in another shape."""
        served = announcement.served
        known = self._known.get(Digest(served.digest)) if served else None
        return (
            served is not None
            and known is not None
            and (served.n_blocks, served.hidden_size, served.vocab_size, served.kind)
            != (known.n_blocks, known.hidden_size, known.vocab_size, known.kind)
        )

    def may_speak(self, announcement: Announcement, raw: bytes, now: float, every_s: float) -> bool:
        """Whether a word is listened to: of new ones a few at once, and then one every ``every_s``."""
        last = self._last(peer := PeerId(announcement.peer))
        if last is None:
            return self._placeless.may_speak(peer, announcement.sequence, now, every_s)
        # Whoever is suspected is: else who suspects it again and again evicts it.
        may = last.suspected or words_left(last.words, now - last.since, every_s) >= 1
        return last.said(raw) or (may and announcement.sequence > last.sequence)

    def _last(self, peer: PeerId) -> _Entry | Departed | None:
        return self._entries.get(peer) or self._gone.get(peer)

    def _words_after(self, announcement: Announcement, now: float, every_s: float) -> float:
        """Words that a peer may say at once after this one."""
        last = self._last(peer := PeerId(announcement.peer))
        if last is None:
            return self._placeless.words_after(peer, announcement.sequence, now, every_s)
        return words_left(last.words, now - last.since, every_s) - (not last.suspected)

    def take(
        self, announcement: Announcement, raw: bytes, now: float, wall: float, every_s: float = 0.0
    ) -> bool:
        """Keep an announcement that :func:`shoal.swarm.announcement.unseal` has passed.

        Args:
            every_s: how often the peer may speak; see :meth:`may_speak`.

        Returns whether it said something new. What contradicts a model that is known here says nothing, nor
        does a peer that finds no place where only a part of the swarm is kept.

        Raises:
            RemoteProtocolError: it is a replay of an earlier one, or the directory is full.
        """
        self.expire(now)
        if self._contradicts(announcement):
            return False
        peer = PeerId(announcement.peer)
        known = self.sequence(peer)
        if announcement.sequence == known and self._last(peer) is not None:
            return False
        if announcement.sequence < known:
            raise RemoteProtocolError(f"an announcement of {peer} older than one that we have")
        network = stated_network(announcement.address)
        if not (announcement.leaving or peer in self._entries) and len(self._entries) >= self._limit:
            self._make_room(announcement, network)
        words = self._words_after(announcement, now, every_s)
        old = self._remove(peer)
        if announcement.leaving:
            if old is not None:
                self._lose_place(peer, old)
            elif self._placeless.sequence(peer) >= 0:
                self._placeless.note(peer, LastWord(announcement.sequence, now, words))
            gone = Departed(announcement.sequence, now, words, now, key_of(peer), hash(raw), None)
            self._depart(peer, gone, was_here=old is not None)
        else:
            # A newer word from one that was taken for gone: it lives.
            self._gone.forget(peer)
            # Who speaks again keeps the place that it has by how long it has been here.
            met, key = (old.met, old.key) if old else (now, key_of(peer))
            # By either clock: a word from a clock that is ahead lives no longer than it asked for.
            ends = now + min(announcement.expires - announcement.issued, announcement.expires - wall)
            self._add(peer, _Entry(announcement, raw, key, now, ends, ends, network, met, words))
            self._place(peer, old)
            self._next_end = min(self._next_end, ends)
        return announcement.leaving or peer in self._entries

    def keep_part(self, rules: ViewRules, joined: Iterable[Digest] = ()) -> None:
        """Keep a part of the swarm from now on, drawn by a new secret key: of ``joined`` as :meth:`join`."""
        self.view = PartialView(rules, secrets.token_bytes(32))
        self.view.join(joined)
        self._offer(self._entries)

    def keep_all(self) -> None:
        """Keep everybody from now on, as far as there are places."""
        self.view = None

    def join(self, digests: Iterable[Digest]) -> None:
        """These are the models that this machine serves or asks for: of them a large part is kept."""
        if self.view is not None:
            again = self.view.join(digests)
            self._offer(peer for digest in again for peer in self._serving.get(digest, ()))

    def _offer(self, peers: Iterable[PeerId]) -> None:
        """See who of these is kept; those first who have been here for longest."""
        for peer in sorted(peers, key=lambda peer: self._entries[peer].met):
            if peer in self._entries:  # others may have taken its place
                self._place(peer, None)

    def _place(self, peer: PeerId, old: _Entry | None) -> None:
        """Somebody has come, or said something new: see whether it is kept, and who is not any more."""
        view, entry = self.view, self._entries[peer]
        if view is None:
            return
        view.heard(peer, entry.ends)
        if peer == self.own:
            return
        if old is not None:
            if view.holds(peer, entry.digest):
                view.update(entry.announcement)
                return
            view.remove(peer, old.digest)
        gone = view.offer(entry.announcement, self._used.keys(), self.neighbours)
        if not view.holds(peer, entry.digest):
            gone.append(peer)
        for other in gone:  # which is no word that it has gone
            if (left := self._remove(other)) is not None:
                self._placeless.note(other, LastWord(left.sequence, left.since, left.words))

    def used(self, peer: PeerId) -> None:
        """This peer has served us: whoever comes later does not take its place."""
        self._used[peer] = None
        self._used.move_to_end(peer)
        if len(self._used) > USED_KEPT:
            self._used.popitem(last=False)

    def _add(self, peer: PeerId, entry: _Entry) -> None:
        self._placeless.forget(peer)
        self._entries[peer] = entry
        self._raws.add(entry.raw)
        self._serving.setdefault(entry.digest, {})[peer] = None

    def _remove(self, peer: PeerId) -> _Entry | None:
        entry = self._entries.pop(peer, None)
        if entry is not None:
            self._raws.discard(entry.raw)
            others = self._serving[entry.digest]
            del others[peer]
            if not others:
                del self._serving[entry.digest]
        return entry

    def _forget(self, peer: PeerId) -> None:
        """Keep a peer no more, which is no word that it has gone."""
        entry = self._remove(peer)
        if entry is not None:
            self._lose_place(peer, entry)

    def _lose_place(self, peer: PeerId, entry: _Entry) -> None:
        if self.view is not None:
            self.view.remove(peer, entry.digest)

    @property
    def friends(self) -> frozenset[PeerId]:
        """Those whom this machine talks with, or that have served it, ourselves among them."""
        return self.neighbours | self._used.keys()

    def _make_room(self, newcomer: Announcement, network: str) -> None:
        friends = self.friends
        of_use = newcomer.served is not None and newcomer.served.digest in self._known
        favoured = of_use or newcomer.peer in friends
        count = max(1, int(self._limit * FORGOTTEN_SHARE))
        # First those who serve nothing that this machine has; only for one of use, or a friend, the others.
        of_no_use = {peer: entry for peer, entry in self._entries.items() if entry.digest not in self._known}
        gone = peers_to_evict(of_no_use, friends, None if favoured else network, count, self._random)
        if not gone and favoured:
            place = None if newcomer.peer in friends else network
            gone = peers_to_evict(self._entries, friends, place, count, self._random)
        if not gone:
            raise RemoteProtocolError(f"the directory is full with {self._limit} peers")
        for peer in gone:
            self._forget(peer)

    def sequence(self, peer: PeerId) -> int:
        """The newest sequence number heard from ``peer``, -1 if none is remembered."""
        last = self._last(peer)
        return last.sequence if last else self._placeless.sequence(peer)

    def get(self, peer: PeerId) -> Announcement | None:
        """What a peer said last, if it is there."""
        entry = self._entries.get(peer)
        return entry.announcement if entry else None

    def address_of(self, peer: PeerId) -> PeerAddress | None:
        """Where a peer says that it is; ``None`` if nothing is known of it."""
        found = self.get(peer)
        return None if found is None else found.address

    def operator_of(self, peer: PeerId) -> str:
        """Whose machine a peer is, as it announces and its operator has signed; empty where it does not."""
        found = self.get(peer)
        statement = None if found is None else operator_of(found)
        return "" if statement is None else statement.operator

    def peers(self) -> frozenset[PeerId]:
        """Everybody whose announcement is here."""
        return frozenset(self._entries)

    def expires_in_s(self, peer: PeerId, now: float) -> float:
        """How long what a peer said last still holds, if nobody suspects it; 0 if it does not."""
        entry = self._entries.get(peer)
        return max(0.0, entry.ends - now) if entry else 0.0

    def raw(self, peer: PeerId) -> bytes:
        """The same as it was received, or nothing."""
        entry = self._entries.get(peer)
        return entry.raw if entry else b""

    def holds(self, raw: bytes) -> bool:
        """Whether this very word is there."""
        return raw in self._raws

    def is_lost(self, peer: PeerId) -> bool:
        """Whether it is gone without a goodbye."""
        departed = self._gone.get(peer)
        return departed is not None and departed.last is not None

    def drop(self, peer: PeerId, now: float) -> None:
        """Forget a peer that turned out to be gone; its next announcement brings it back."""
        entry = self._remove(peer)
        if entry is not None:
            self._lose_place(peer, entry)
            # Who is taken for gone while its word holds may still say that it lives, as who is suspected.
            words, mark = entry.words + (now < entry.ends), hash(entry.raw)
            gone = Departed(entry.sequence, entry.since, words, now, entry.key, mark, entry.announcement)
            self._depart(peer, gone, was_here=True)

    def may_suspect(self, peer: PeerId, sequence: int, now: float, settled_s: float) -> bool:
        """Whether to suspect this word is news: it is the newest, not yet suspected, and not just come."""
        entry = self._entries.get(peer)
        return (
            entry is not None
            and entry.sequence == sequence
            and not entry.suspected
            and now - entry.since >= settled_s
        )

    def suspect(self, peer: PeerId, until: float) -> None:
        """Take the peer for gone at ``until`` unless it says something new before."""
        entry = self._entries[peer]
        entry.until = min(entry.until, until)
        self._next_end = min(self._next_end, until)

    def expire(self, now: float) -> None:
        """Forget what is over. The departed are remembered while their last words could be played again."""
        self._placeless.expire(now)
        self._gone.expire(now)
        # Nobody ends before that, so most calls look no further.
        if now < self._next_end:
            return
        for peer in [p for p, entry in self._entries.items() if entry.until <= now]:
            self.drop(peer, now)
        self._next_end = min((entry.until for entry in self._entries.values()), default=math.inf)

    def alive(self, now: float) -> list[Announcement]:
        """Every announcement that has not expired."""
        return [entry.announcement for entry in self._entries.values() if entry.until > now]

    def held(self, part: DirectoryPart, now: float, models: Collection[str] = ()) -> dict[bytes, int]:
        """The newest word of each peer of a part, by the peers' keys.

        Args:
            models: of which alone; of all, if there are none.
        """
        return {
            entry.key: entry.sequence
            for entry in self._of(models)
            if entry.until > now and part.has(entry.key)
        }

    def _of(self, models: Collection[str]) -> Iterable[_Entry]:
        """Everybody, or who serves one of some models."""
        if not models:
            return self._entries.values()
        return [self._entries[peer] for digest in models for peer in self._serving.get(digest, ())]

    def news(
        self,
        part: DirectoryPart,
        held: Mapping[bytes, int],
        now: float,
        models: Collection[str] = (),
    ) -> list[bytes]:
        """Words about a part, as they were received, that somebody who holds ``held`` lacks.

        Those who are suspected are passed over: who comes now would not hear how it ends.

        Args:
            models: as :meth:`held` has it.
        """
        return [
            entry.raw
            for entry in self._of(models)
            if entry.until > now
            and part.has(entry.key)
            and held.get(entry.key, -1) < entry.sequence
            and not entry.suspected
        ]

    def words_of_friends(self, now: float, models: Collection[str] = ()) -> dict[bytes, bytes]:
        """The words, as they were received, of those whom we know ourselves, and the peers' keys.

        Args:
            models: as :meth:`held` has it.
        """
        entries = (self._entries.get(peer) for peer in sorted(self.friends))
        return {
            e.raw: e.key
            for e in entries
            if e is not None and e.until > now and not e.suspected and (not models or e.digest in models)
        }

    def gone(self, held: Mapping[bytes, int]) -> dict[bytes, int]:
        """The last words of those in ``held`` who are gone by what we know, or suspected, by their keys.

        With them of who has gone last, or is suspected, be they in ``held`` or not.
        """
        departed = {d.key: d.sequence for d in self._gone}
        suspected = {e.key: e.sequence for e in self._entries.values() if e.suspected}
        over = departed | suspected
        told = {d.key: d.sequence for d in self._gone.lately(LATELY_TOLD)} | dict(
            list(suspected.items())[:LATELY_TOLD]
        )
        return told | {key: over[key] for key, sequence in held.items() if over.get(key, -1) >= sequence}

    def lost(self) -> list[Announcement]:
        """The last words of those who are gone without a goodbye, for a while."""
        return self._gone.lost()

    def among(self, gone: Mapping[bytes, int]) -> list[Announcement]:
        """Whom we hold of those who are said to be gone, and have heard nothing newer of."""
        return [
            entry.announcement
            for entry in self._entries.values()
            if gone.get(entry.key, -1) >= entry.sequence
        ]

    def serving(self, digest: Digest, now: float, format: Format | None = None) -> Iterator[Announcement]:
        """Who serves a span of the model, in ``format`` when one is given."""
        for peer in tuple(self._serving.get(digest, ())):
            entry = self._entries[peer]
            served = entry.announcement.served
            if entry.until > now and served is not None and format in (None, served.format):
                yield entry.announcement

    def drawn(self, digest: Digest, now: float, format: Format | None = None) -> Iterator[Announcement]:
        """Some of :meth:`serving`, drawn from all that were heard of by nothing but chance; all, where few.

        Whom a part of a swarm keeps else must not be counted to see what a model lacks: it has of all alike.
        """
        kept = self.view.of(digest) if self.view is not None else None
        drawn = kept.drawn if kept is not None else ()
        return (a for a in self.serving(digest, now, format) if not drawn or PeerId(a.peer) in drawn)

    def unlike(self, digest: Digest) -> frozenset[PeerId]:
        """Who serves a model of a large swarm and was not kept by chance alone."""
        kept = self.view.of(digest) if self.view is not None else None
        return frozenset(kept.unlike) if kept is not None else frozenset()

    def is_served(self, digest: Digest, now: float) -> bool:
        """Whether anybody serves a span of the model."""
        return next(self.serving(digest, now), None) is not None

    def models(self, now: float) -> list[ModelShape]:
        """Every model of which some span is served, each once: as it is known here, else as most say."""
        shapes: list[ModelShape] = []
        for digest, peers in self._serving.items():
            served = [e.announcement.served for e in map(self._entries.__getitem__, peers) if e.until > now]
            if any(served):
                shapes.append(self.known(Digest(digest)) or shape_of(one for one in served if one))
        return sorted(shapes, key=lambda shape: shape.name)

    def by_standing(self, now: float) -> list[Announcement]:
        """Who serves something: first those whom this machine talks with, or that have served it, then those
        who serve a model that it has, then the others; of equals first who has been there for longest."""
        friends = self.friends
        alive = [(peer, e) for peer, e in self._entries.items() if e.until > now]
        alive.sort(key=lambda item: (item[0] not in friends, item[1].digest not in self._known, item[1].met))
        return [entry.announcement for _, entry in alive]

    def _depart(self, peer: PeerId, departed: Departed, *, was_here: bool) -> None:
        if self.view is not None:
            self.view.gone(peer)
        self._gone.note(peer, departed, was_here=was_here)

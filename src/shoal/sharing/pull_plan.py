"""What a pull asks of whom next. Pure: no I/O; the caller brings the time.

A piece is a chunk of an item, or the list of an item's chunk hashes, without which its chunks cannot be
checked. Pieces are asked for in the items' order, so that blocks become whole one after another. Each peer
has as many pieces under way as it sends in ``AHEAD_S``: a slow one few, a fast one many. What a peer is late
with is asked of another one as well, once nothing else is left for that one to do.
"""

from __future__ import annotations

import math
from collections import OrderedDict, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from shoal.models.checkpoint.manifest import ManifestItem
from shoal.types import PeerId

AHEAD_S = 0.25
"""Of a peer's time, that is asked for ahead: longer than most round trips."""
FIRST_WINDOW = 2
MAX_WINDOW = 16
"""Pieces of 1 MiB under way from one peer."""
MAX_UNDER_WAY = 64
"""The same from all peers, those that have come and are not written yet among them."""
LISTS_AHEAD = 16
"""Items whose chunk hashes are asked for before their chunks are."""
LATE_S = 2.0
"""A piece that takes longer, and four times as long as its peer's usually do, is late."""
PACE_WEIGHT = 0.3
"""Of the newest piece in a peer's usual time."""
FIRST_REST_S = 0.5
LONG_REST_S = 5.0
SILENT_S = 15.0
"""A peer that rests for longer, or has sent nothing for so long, gives its place to one who waits for it."""
FAILURES = 5
"""In a row, each of which doubles a peer's rest; then it is given up."""

HASHES = -1
"""In a :class:`PieceKey`: the hashes of all chunks."""


class PieceKey(NamedTuple):
    """A piece of a model."""

    item: int
    """Its place in the manifest."""
    chunk: int
    """Which chunk of it; or :data:`HASHES`."""


class PieceAsk(NamedTuple):
    """A piece that is to be asked of a peer."""

    peer: PeerId
    piece: PieceKey


@dataclass(eq=False)
class _Peer:
    id: PeerId
    has: Callable[[int], bool]
    under_way: dict[PieceKey, float] = field(default_factory=dict[PieceKey, float])
    """Since when."""
    piece_s: float | None = None
    last: float = -math.inf
    waited_since: float = math.inf
    """When it was first asked for something after it last sent something."""
    rest_until: float = -math.inf
    failures: int = 0

    @property
    def window(self) -> int:
        if self.piece_s is None:
            return FIRST_WINDOW
        return max(1, min(MAX_WINDOW, math.ceil(AHEAD_S / max(self.piece_s, 1e-6))))

    def is_spare(self, now: float) -> bool:
        """Whether another one may have its place."""
        return self.rest_until - now > LONG_REST_S or now - self.waited_since > SILENT_S

    def has_room(self, now: float) -> bool:
        return now >= self.rest_until and len(self.under_way) < self.window

    def late_after_s(self) -> float:
        return max(LATE_S, 4 * (self.piece_s or 0.0) * self.window)


@dataclass(eq=False)
class _Item:
    unasked: deque[int]
    left: int
    """Chunks that are not here yet."""
    listed: bool
    """Whether its chunk hashes are known, or not needed."""


class PullPlan:
    """The items that a pull is to bring, who has which, and what is under way."""

    def __init__(self, items: Sequence[ManifestItem], missing: Mapping[int, Sequence[int]]) -> None:
        """
        Args:
            items: the manifest's.
            missing: the chunks that are not here, by the items that are wanted.
        """
        self._items: OrderedDict[int, _Item] = OrderedDict(
            (number, _Item(deque(chunks), len(chunks), items[number].chunks == 1))
            for number, chunks in missing.items()
            if chunks
        )
        self._peers: dict[PeerId, _Peer] = {}
        self._taken: dict[PieceKey, set[PeerId]] = {}
        """Pieces that are asked for, or have come and are not checked yet, and of whom."""

    @property
    def done(self) -> bool:
        """Whether all that was missing is here."""
        return not self._items

    @property
    def peers(self) -> Sequence[PeerId]:
        """Who is asked."""
        return list(self._peers)

    def needs_list(self, item: int) -> bool:
        """Whether an item's chunks cannot be checked yet."""
        return item in self._items and not self._items[item].listed

    def listed(self, item: int) -> None:
        """The chunk hashes of an item are known."""
        if item in self._items:
            self._items[item].listed = True

    def add_peer(self, peer: PeerId, has: Callable[[int], bool]) -> None:
        """Ask a peer from now on for the items that it ``has``; one that is asked already stays as it is."""
        self._peers.setdefault(peer, _Peer(peer, has))

    def spare_peer(self, now: float) -> tuple[PeerId, float] | None:
        """Whose place another one may have, and when it has had its rest: who sent something longest ago."""
        spare = [peer for peer in self._peers.values() if peer.is_spare(now)]
        found = min(spare, key=lambda peer: peer.last, default=None)
        return None if found is None else (found.id, max(now, found.rest_until))

    def drop_peer(self, peer: PeerId) -> None:
        """Ask a peer for nothing more."""
        gone = self._peers.pop(peer, None)
        for piece in list(gone.under_way) if gone else ():
            self._give_back(peer, piece)

    def next_asks(self, now: float) -> list[PieceAsk]:
        """What to ask of whom at this moment; it counts as asked from then on."""
        asks: list[PieceAsk] = []
        # The fastest first: what is left in the end goes to them. Who has just failed comes last.
        for peer in sorted(self._peers.values(), key=lambda peer: (peer.failures, peer.piece_s or 0.0)):
            while len(self._taken) < MAX_UNDER_WAY and peer.has_room(now):
                piece = self._next_for(peer) or self._late_piece(peer, now)
                if piece is None:
                    break
                self._take(peer, piece, now)
                asks.append(PieceAsk(peer.id, piece))
        return asks

    def came(self, peer: PeerId, piece: PieceKey, now: float) -> None:
        """A peer has sent a piece, which is to be checked: :meth:`checked` or :meth:`wrong` follows."""
        sender = self._peers.get(peer)
        asked = sender.under_way.pop(piece, None) if sender else None
        if sender is None or asked is None:
            return
        took = now - max(asked, sender.last)
        sender.last, sender.failures = now, 0
        sender.waited_since = now if sender.under_way else math.inf
        if piece.chunk != HASHES:
            before = took if sender.piece_s is None else sender.piece_s
            sender.piece_s = before + PACE_WEIGHT * (took - before)

    def checked(self, piece: PieceKey) -> bool:
        """A piece is right, and here; whether it was not before."""
        if self._taken.pop(piece, None) is None:
            return False
        if piece.chunk == HASHES:
            self.listed(piece.item)
            return True
        item = self._items[piece.item]
        item.left -= 1
        if not item.left:
            del self._items[piece.item]
        return True

    def wrong(self, peer: PeerId, piece: PieceKey) -> None:
        """What a peer has sent is not the piece: it is asked for nothing more, and another one for this."""
        self._give_back(peer, piece)
        self.drop_peer(peer)

    def failed(self, peer: PeerId, piece: PieceKey, now: float, rest_s: float = FIRST_REST_S) -> bool:
        """A peer has not sent a piece; it rests, longer each time. Whether it has been given up."""
        self._give_back(peer, piece)
        sender = self._peers.get(peer)
        if sender is None:
            return True
        sender.under_way.pop(piece, None)
        sender.failures += now >= sender.rest_until  # those under way together fail together
        sender.rest_until = max(sender.rest_until, now + rest_s * 2 ** max(0, sender.failures - 1))
        if sender.failures < FAILURES:
            return False
        self.drop_peer(peer)
        return True

    def wake_at(self, now: float) -> float:
        """When there may be something to ask though nothing has happened."""
        times = [peer.rest_until for peer in self._peers.values() if peer.rest_until > now]
        for peer in self._peers.values():
            times += [asked + peer.late_after_s() for asked in peer.under_way.values()]
        return min((time for time in times if time > now), default=math.inf)

    def unheld(self) -> list[int]:
        """The items of which something is missing that nobody who is asked has."""
        return [n for n in self._items if not any(peer.has(n) for peer in self._peers.values())]

    def _next_for(self, peer: _Peer) -> PieceKey | None:
        ahead = 0
        for number, item in self._items.items():
            if not peer.has(number):
                continue
            if not item.listed:
                ahead += 1
                if (key := PieceKey(number, HASHES)) not in self._taken:
                    return key
                if ahead == LISTS_AHEAD:
                    return None
            elif item.unasked:
                return PieceKey(number, item.unasked.popleft())
        return None

    def _late_piece(self, peer: _Peer, now: float) -> PieceKey | None:
        """A piece that another peer is late with; each is asked of two at most."""
        for other in self._peers.values():
            after_s = other.late_after_s()
            for piece, asked in other.under_way.items():
                alone = len(self._taken.get(piece, ())) == 1
                if other is not peer and alone and now - asked >= after_s and peer.has(piece.item):
                    return piece
        return None

    def _take(self, peer: _Peer, piece: PieceKey, now: float) -> None:
        peer.under_way[piece] = now
        peer.waited_since = min(peer.waited_since, now)
        self._taken.setdefault(piece, set()).add(peer.id)

    def _give_back(self, peer: PeerId, piece: PieceKey) -> None:
        askers = self._taken.get(piece)
        if askers is None:
            return
        askers.discard(peer)
        if not askers:
            del self._taken[piece]
            if piece.chunk != HASHES and piece.item in self._items:
                self._items[piece.item].unasked.appendleft(piece.chunk)

"""The announcements that are alive now: bounded, newest per peer, gone when they expire. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from shoal.errors import RemoteProtocolError
from shoal.swarm.announcement import Announcement
from shoal.types import Digest, Format, ModelShape, PeerId, Span, gaps

MAX_PEERS = 4096


class Directory:
    """Takes announcements in, forgets them when their time is over.

    An announcement lives until it expires by the announcer's clock, and never longer than the lifetime it
    asked for counted from when it came, by ours: a clock ahead of ours makes no ghost.
    """

    def __init__(self, limit: int = MAX_PEERS) -> None:
        self._limit = limit
        self._entries: dict[PeerId, tuple[Announcement, bytes, float]] = {}
        self._gone: dict[PeerId, tuple[int, float]] = {}

    def __len__(self) -> int:
        return len(self._entries)

    def take(self, announcement: Announcement, raw: bytes, now: float) -> bool:
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
        if peer not in self._entries and len(self._entries) >= self._limit:
            raise RemoteProtocolError(f"the directory is full with {self._limit} peers")
        until = now + min(announcement.expires - announcement.issued, announcement.expires - now)
        if announcement.leaving:
            self._entries.pop(peer, None)
            self._gone[peer] = (announcement.sequence, until)
        else:
            self._entries[peer] = (announcement, raw, until)
        return True

    def sequence(self, peer: PeerId) -> int:
        """The newest sequence number heard from ``peer``, -1 if none is remembered."""
        entry = self._entries.get(peer)
        return entry[0].sequence if entry else self._gone.get(peer, (-1, 0.0))[0]

    def drop(self, peer: PeerId) -> None:
        """Forget a peer that turned out to be gone; its next announcement brings it back."""
        entry = self._entries.pop(peer, None)
        if entry is not None:
            self._gone[peer] = (entry[0].sequence, entry[2])

    def expire(self, now: float) -> None:
        """Forget what is over. Departed peers are remembered until their last word would have expired."""
        for peer in [p for p, (_, _, until) in self._entries.items() if until <= now]:
            del self._entries[peer]
        for peer in [p for p, (_, until) in self._gone.items() if until <= now]:
            del self._gone[peer]

    def alive(self, now: float) -> list[Announcement]:
        """Every announcement that has not expired."""
        return [a for a, _, until in self._entries.values() if until > now]

    def raw(self, now: float) -> list[bytes]:
        """The same as they were received, for a peer that has just come."""
        return [raw for _, raw, until in self._entries.values() if until > now]

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

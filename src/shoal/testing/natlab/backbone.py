"""The middle of a lab's internet: when a packet arrives where, if it does. No I/O; time is an argument."""

from __future__ import annotations

import heapq
import itertools
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from random import Random

from shoal.testing.natlab.sites import LinkQuality

BUFFER_S = 0.3
"""What a link with a rate holds back at most; more is dropped, as a router's full queue does."""


class _Lane:
    """One direction of a link."""

    def __init__(self, quality: LinkQuality, random: Random) -> None:
        self._delay_s = quality.delay_ms / 1e3
        self._bytes_s = quality.rate_mbit * 1e6 / 8
        self._loss = quality.loss
        self._random = random
        self._free = 0.0
        """When the last packet that was taken has left."""

    def pass_through(self, now: float, size: int) -> float | None:
        """When a packet of so many bytes is at the other end; ``None`` if it is lost."""
        if self._loss and self._random.random() < self._loss:
            return None
        if not self._bytes_s:
            return now + self._delay_s
        begins = max(self._free, now)
        if begins - now > BUFFER_S:
            return None
        self._free = begins + size / self._bytes_s
        return self._free + self._delay_s


@dataclass(slots=True)
class _Attachment:
    """A site as the backbone knows it."""

    up: _Lane
    down: _Lane
    offline_until: float = 0.0


class Backbone:
    """Takes packets from sites and gives them out at sites, each known by its number.

    A packet passes two links. It is given to the second when it has passed the first, so that packets from
    near and far come to a narrow link in the order in which they arrive there.
    """

    def __init__(self, addresses: Mapping[bytes, int], links: Mapping[int, LinkQuality], seed: int) -> None:
        """
        Args:
            addresses: the site of each public address, packed as in a packet.
        """
        self.carried: Counter[tuple[int, int]] = Counter()
        """Bytes that arrived, by the sites that they came from and went to."""
        self._addresses = dict(addresses)
        self._random = Random(seed)
        self._sites = {number: self._attach(quality) for number, quality in links.items()}
        self._cut: frozenset[frozenset[int]] = frozenset()
        self._queue: list[tuple[float, int, bool, int, int, bytes]] = []
        self._order = itertools.count()

    def shape(self, site: int, quality: LinkQuality) -> None:
        """Give a site's link another quality, for the packets that come to it from now on."""
        old = self._sites[site]
        self._sites[site] = self._attach(quality)
        self._sites[site].offline_until = old.offline_until

    def set_offline(self, site: int, until: float) -> None:
        """Let no packet leave or reach a site before ``until``."""
        self._sites[site].offline_until = until

    def set_cuts(self, pairs: frozenset[frozenset[int]]) -> None:
        """Let no packet pass between the two sites of each pair, in place of those that were cut before."""
        self._cut = pairs

    def take(self, now: float, site: int, packet: bytes) -> None:
        """A packet leaves a site."""
        to = self._addresses.get(_destination(packet))
        if to is None or self._sites[site].offline_until > now:
            return
        if self._cut and frozenset((site, to)) in self._cut:
            return
        at = self._sites[site].up.pass_through(now, len(packet))
        if at is not None:
            heapq.heappush(self._queue, (at, next(self._order), False, site, to, packet))

    @property
    def next_due(self) -> float | None:
        """When :meth:`give` next has something to do."""
        return self._queue[0][0] if self._queue else None

    def give(self, now: float) -> list[tuple[int, bytes]]:
        """The packets that have arrived by now, each with the site."""
        arrived: list[tuple[int, bytes]] = []
        while self._queue and self._queue[0][0] <= now:
            at, _, passed_both, site, to, packet = heapq.heappop(self._queue)
            if self._sites[to].offline_until > at:
                continue
            if passed_both:
                self.carried[site, to] += len(packet)
                arrived.append((to, packet))
                continue
            there = self._sites[to].down.pass_through(at, len(packet))
            if there is not None:
                heapq.heappush(self._queue, (there, next(self._order), True, site, to, packet))
        return arrived

    def _attach(self, quality: LinkQuality) -> _Attachment:
        return _Attachment(_Lane(quality, self._random), _Lane(quality, self._random))


def _destination(packet: bytes) -> bytes:
    """Where an IPv4 or IPv6 packet is to go."""
    return packet[16:20] if packet[0] >> 4 == 4 else packet[24:40]

"""Whether a word holds now where clocks differ: by the swarm's time, or by that of the peer that says it.

Two machines of which one is a day off are of different opinions, and nobody can say which is right. So each
asks the other for its time, and reads that peer's own words by it. A peer can lie about its time: then its
own words hold for longer, or not at all, and nobody else's. A replay is still known by its sequence number.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress

import trio

from shoal.errors import ShoalError
from shoal.net.network import Network
from shoal.swarm.announcement import Announcement, Misdated, check_dates
from shoal.swarm.clock import Clock
from shoal.types import PeerId

KEPT = 4
"""Peers that are asked for their time at once."""
LOOK_EVERY_S = 1.0
DIAL_WITHIN_S = 5.0

log = logging.getLogger(__name__)


class Dates:
    """Reads dates for one member. ``run`` must be running.

    Args:
        rest_s: between two rounds of asking, for anybody can make up peers to be asked.
        ask: asks a connected peer what it knows, its time among that.
        take: takes in an announcement.
    """

    def __init__(
        self,
        network: Network,
        clock: Clock,
        *,
        rest_s: float,
        ask: Callable[[PeerId], Awaitable[None]],
        take: Callable[[bytes], object],
    ) -> None:
        self._network = network
        self._clock = clock
        self._rest_s = rest_s
        self._ask = ask
        self._take = take
        self._misdated: dict[PeerId, tuple[Announcement, bytes]] = {}
        self._said = ""

    def time_for(self, announcement: Announcement) -> float:
        """The time of day by which an announcement holds now.

        Raises:
            Misdated: it does not hold.
        """
        wall, theirs = self._clock.wall(), self._clock.wall_of(PeerId(announcement.peer))
        try:
            check_dates(announcement, wall)
        except Misdated:
            if theirs is None:
                raise
            check_dates(announcement, theirs)
            return theirs
        return wall

    def wants(self, peer: PeerId) -> bool:
        """Whether to ask a peer, whose word does not hold, for its time."""
        known = peer == self._network.peer or self._clock.wall_of(peer) is not None
        return not known and len(self._misdated) < KEPT

    def note(self, announcement: Announcement, raw: bytes) -> None:
        """Ask the peer that has signed this for its time, and take it in if it holds by that."""
        self._misdated[PeerId(announcement.peer)] = announcement, raw

    async def run(self) -> None:
        """Ask, and log that clocks differ, until cancelled."""
        while True:
            await trio.sleep(LOOK_EVERY_S)
            # Swapped before anybody is asked: words that come meanwhile are for the next round.
            misdated, self._misdated = self._misdated, {}
            async with trio.open_nursery() as nursery:
                for announcement, raw in misdated.values():
                    nursery.start_soon(self._ask_one, announcement, raw)
            said = self._clock.doubts()
            if said and not self._said:
                log.warning("%s", said)
            self._said = said
            if misdated:
                await trio.sleep(self._rest_s)

    async def _ask_one(self, announcement: Announcement, raw: bytes) -> None:
        with suppress(ShoalError):  # who does not answer is not there
            await self._network.approach(announcement.address, deadline_s=DIAL_WITHIN_S)
            await self._ask(PeerId(announcement.peer))
            self._take(raw)

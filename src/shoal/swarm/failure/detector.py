"""Doubts at one member: it hears and raises them, refutes its own, and asks before it believes one.

The rules are in :mod:`shoal.swarm.failure.suspicion`; here is who talks with whom.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

import trio

from shoal.errors import RemoteProtocolError, ShoalError
from shoal.net.network import Network
from shoal.swarm.announcement import Announcement
from shoal.swarm.directory import Directory
from shoal.swarm.failure.suspicion import (
    GONE_SHARE,
    REFUTE_SHARE,
    SETTLED_SHARE,
    Doubt,
    Doubters,
    decode,
    encode,
)
from shoal.types import PeerId

TOPIC = "/shoal/doubt/1"
VOUCH_PROTOCOL = "/shoal/vouch/1"
"""Asks a peer for its newest announcement. The question is a doubt: if of the newest, a newer one is made."""
ASK_WITHIN_S = 5.0
ASKED_AT_ONCE = 32

log = logging.getLogger(__name__)


class Doubts:
    """What one member does about peers of whom it is not certain that they live. ``run`` must be running.

    Args:
        speak: makes our own next announcement; returns nothing if we have nothing to announce.
        take: takes in an announcement that another peer has given us.
    """

    def __init__(
        self,
        network: Network,
        directory: Directory,
        now: Callable[[], float],
        expiry_s: float,
        *,
        speak: Callable[[], Awaitable[bytes]],
        take: Callable[[bytes], object],
    ) -> None:
        self._network = network
        self._directory = directory
        self._now = now
        self._expiry_s = expiry_s
        self._speak = speak
        self._take = take
        self._doubters = Doubters(expiry_s)
        self._waiting = trio.CapacityLimiter(ASKED_AT_ONCE)
        self._nursery: trio.Nursery | None = None
        network.answer(VOUCH_PROTOCOL, self._vouch)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Hear doubts until cancelled."""
        async with self._network.subscribe(TOPIC, self._valid) as doubts, trio.open_nursery() as nursery:
            self._nursery = nursery
            task_status.started()
            try:
                await self._hear(doubts)
            finally:
                self._nursery = None

    async def raise_doubt(self, peer: PeerId) -> bool:
        """Tell the swarm that a peer does not answer, if that is news; whether it was."""
        doubt = Doubt(peer, self._directory.sequence(peer))
        if not self._may_doubt(doubt):
            return False
        log.info("%s does not answer: it is gone soon, unless it refutes that", peer)
        self._mark(peer)
        await self._network.publish(TOPIC, encode(doubt))
        return True

    async def ask(self, unsure: Sequence[Announcement]) -> None:
        """Ask these peers themselves, all at once. Who lives gives a newer word; who does not is gone."""
        async with trio.open_nursery() as nursery:
            for announcement in unsure[:ASKED_AT_ONCE]:
                nursery.start_soon(self._ask, announcement)

    async def _ask(self, announcement: Announcement) -> None:
        peer = PeerId(announcement.peer)
        question = encode(Doubt(peer, announcement.sequence))
        if peer == self._network.peer:
            await self._vouch(peer, question)
            return
        async with self._waiting:
            try:
                await self._network.approach(announcement.address, deadline_s=ASK_WITHIN_S)
                raw = await self._network.request(peer, VOUCH_PROTOCOL, question, deadline_s=ASK_WITHIN_S)
            except ShoalError as error:
                log.debug("%s does not vouch for itself: %s", peer, error.message)
                if self._directory.get(peer) == announcement:
                    self._directory.drop(peer, self._now())
                await self._network.disconnect(peer)  # what may be left of it
            else:
                self._take(raw)

    async def _vouch(self, peer: PeerId, question: bytes) -> bytes:
        if self._may_doubt(decode(question)):
            return await self._speak()
        return self._directory.raw(self._network.peer)

    def _valid(self, doubter: PeerId, raw: bytes) -> bool:
        try:
            doubt = decode(raw)
        except RemoteProtocolError as error:
            log.debug("refused from %s: %s", doubter, error.message)
            return False
        if self._directory.get(doubter) is None or not self._may_doubt(doubt):
            return False
        return doubt.peer == self._network.peer or self._doubters.heard(doubter, self._now())

    def _may_doubt(self, doubt: Doubt) -> bool:
        settled_s = self._expiry_s * SETTLED_SHARE
        return self._directory.may_doubt(PeerId(doubt.peer), doubt.sequence, self._now(), settled_s)

    async def _hear(self, doubts: AsyncIterator[tuple[PeerId, bytes]]) -> None:
        async for doubter, raw in doubts:
            doubt = decode(raw)
            if not self._may_doubt(doubt):
                continue  # refuted, or doubted by another, since it was found valid
            if doubt.peer == self._network.peer:
                log.info("%s says that we do not answer", doubter)
                await self._speak()
            else:
                self._doubters.note(doubter, self._now())
                self._mark(PeerId(doubt.peer))

    def _mark(self, peer: PeerId) -> None:
        """A peer is gone in a while, unless it refutes the doubt, or answers us."""
        doubted = self._directory.get(peer)
        self._directory.doubt(peer, self._now() + self._expiry_s * GONE_SHARE)
        if doubted is not None and self._nursery is not None:
            self._nursery.start_soon(self._settle, doubted)

    async def _settle(self, doubted: Announcement) -> None:
        await trio.sleep(self._expiry_s * REFUTE_SHARE)
        if self._directory.get(PeerId(doubted.peer)) == doubted:
            await self._ask(doubted)

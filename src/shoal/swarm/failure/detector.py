"""Suspicions at one member: it hears and raises them, refutes its own, and asks before it believes one.

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
    STRANGERS,
    Suspicion,
    SuspicionLimit,
    decode_suspicion,
    encode_suspicion,
)
from shoal.types import PeerId

TOPIC = "/shoal/suspicion/1"
VOUCH_PROTOCOL = "/shoal/vouch/1"
"""Asks a peer for its newest announcement. The question is a suspicion: to one of the newest, a newer one is
the answer."""
ASK_WITHIN_S = 5.0
ASKED_AT_ONCE = 32

log = logging.getLogger(__name__)


class FailureDetector:
    """What one member does about peers of whom it is not certain that they live. ``run`` must be running.

    Args:
        speak: makes our own next announcement; returns nothing if we have nothing to announce.
        take: takes in an announcement that another peer has given us.
        topics: where those hear suspicions who know a peer.
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
        topics: Callable[[PeerId], Sequence[str]],
    ) -> None:
        self._network = network
        self._directory = directory
        self._now = now
        self._expiry_s = expiry_s
        self._speak = speak
        self._take = take
        self._topics = topics
        self._limit = SuspicionLimit(expiry_s)
        self._waiting = trio.CapacityLimiter(ASKED_AT_ONCE)
        self._nursery: trio.Nursery | None = None
        network.answer(VOUCH_PROTOCOL, self._vouch)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Hear suspicions until cancelled."""
        async with self._network.subscribe(TOPIC, self._valid) as suspicions, trio.open_nursery() as nursery:
            self._nursery = nursery
            task_status.started()
            try:
                await self.hear(suspicions)
            finally:
                self._nursery = None

    async def raise_suspicion(self, peer: PeerId) -> bool:
        """Tell the swarm that a peer does not answer, if that is news; whether it was."""
        suspicion = Suspicion(peer, self._directory.sequence(peer))
        if not self._may_suspect(suspicion):
            return False
        log.info("%s does not answer: it is gone soon, unless it refutes that", peer)
        self._mark(peer)
        for topic in self._topics(peer):
            await self._network.publish(topic, encode_suspicion(suspicion))
        return True

    async def ask(self, unsure: Sequence[Announcement]) -> None:
        """Ask these peers themselves, all at once. Who lives gives a newer word; who does not is gone."""
        async with trio.open_nursery() as nursery:
            for announcement in unsure[:ASKED_AT_ONCE]:
                nursery.start_soon(self._ask, announcement)

    async def _ask(self, announcement: Announcement) -> None:
        peer = PeerId(announcement.peer)
        question = encode_suspicion(Suspicion(peer, announcement.sequence))
        if peer == self._network.peer:
            await self._vouch(peer, question)
            return
        async with self._waiting:
            try:
                await self._network.approach(announcement.address, deadline_s=ASK_WITHIN_S)
                raw = await self._network.request(peer, VOUCH_PROTOCOL, question, deadline_s=ASK_WITHIN_S)
            except ShoalError as error:
                log.debug("%s does not vouch for itself: %s", peer, error.message)
                # It may have spoken while we asked.
                if self._directory.get(peer) == announcement:
                    self._directory.drop(peer, self._now())
                await self._network.disconnect(peer)  # what may be left of it
            else:
                self._take(raw)

    async def _vouch(self, peer: PeerId, question: bytes) -> bytes:
        # A new word only where the question is of our newest: or anybody could have us sign all day.
        if self._may_suspect(decode_suspicion(question)):
            return await self._speak()
        return self._directory.raw(self._network.peer)

    def _valid(self, accuser: PeerId, raw: bytes) -> bool:
        try:
            suspicion = decode_suspicion(raw)
        except RemoteProtocolError as error:
            log.debug("refused from %s: %s", accuser, error.message)
            return False
        if self._directory.get(accuser) is None or not self._may_suspect(suspicion):
            return False
        # A suspicion of ourselves is always heard: to refute it is all that we can do.
        return suspicion.peer == self._network.peer or self._limit.heard(accuser, self._now())

    def valid_of_model(self, accuser: PeerId, raw: bytes) -> bool:
        """Judge a suspicion on the topic of a model, by who raises it.

        Nobody knows all peers of a model of a large swarm. What is said of strangers, or by them, is passed
        on to those who may know them, as long as that is not too much.
        """
        try:
            suspicion = decode_suspicion(raw)
        except RemoteProtocolError as error:
            log.debug("refused from %s: %s", accuser, error.message)
            return False
        if self._directory.get(PeerId(suspicion.peer)) is not None and not self._may_suspect(suspicion):
            return False
        if suspicion.peer == self._network.peer:
            return True
        known = self._directory.get(accuser) is not None
        return self._limit.heard(accuser if known else STRANGERS, self._now())

    def _may_suspect(self, suspicion: Suspicion) -> bool:
        settled_s = self._expiry_s * SETTLED_SHARE
        return self._directory.may_suspect(PeerId(suspicion.peer), suspicion.sequence, self._now(), settled_s)

    async def hear(self, suspicions: AsyncIterator[tuple[PeerId, bytes]]) -> None:
        """Act on suspicions that were found valid."""
        async for accuser, raw in suspicions:
            suspicion = decode_suspicion(raw)
            if self._directory.get(PeerId(suspicion.peer)) is None:
                self._note(accuser)
                continue  # it was only passed on
            if not self._may_suspect(suspicion):
                continue  # refuted, or suspected by another, since it was found valid
            if suspicion.peer == self._network.peer:
                log.info("%s says that we do not answer", accuser)
                await self._speak()
            else:
                self._note(accuser)
                self._mark(PeerId(suspicion.peer))

    def _note(self, accuser: PeerId) -> None:
        known = self._directory.get(accuser) is not None
        self._limit.note(accuser if known else STRANGERS, self._now())

    def _mark(self, peer: PeerId) -> None:
        """A peer is gone in a while, unless it refutes the suspicion, or answers us."""
        suspected = self._directory.get(peer)
        self._directory.suspect(peer, self._now() + self._expiry_s * GONE_SHARE)
        if suspected is not None and self._nursery is not None:
            self._nursery.start_soon(self._settle, suspected)

    async def _settle(self, suspected: Announcement) -> None:
        await trio.sleep(self._expiry_s * REFUTE_SHARE)
        # No refutation has come; it is asked before it is believed to be gone.
        if self._directory.get(PeerId(suspected.peer)) == suspected:
            await self._ask(suspected)

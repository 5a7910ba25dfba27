"""Which peers have shown what they run on, and for how long that counts.

A peer is asked when a route is looked for, and again before it is :data:`FRESH_S` since. Who does not show it
again takes part in no route from then on, and the sessions over it go on elsewhere.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import trio

from shoal.client.attestation.asking import AttestationQuestions
from shoal.errors import ShoalError, UsageError
from shoal.net.pool import ChannelPool
from shoal.swarm.announcement import Announcement
from shoal.swarm.names import name_of
from shoal.trust.attestation.evidence import AttestationRefused
from shoal.trust.attestation.verify import Verified
from shoal.types import PeerId

FRESH_S = 600.0
"""How long what a peer has shown counts."""
RENEW_S = 300.0
"""After how long a peer in use is asked again."""
RETRY_S = 20.0
"""How long who has shown nothing is not asked again."""
AT_ONCE = 8
"""Peers that are asked at a time."""
ASKED_AT_MOST = 64
"""Peers that are asked for one session; anybody can announce more."""
ALL_WITHIN_S = 20.0
"""How long one session waits for their answers."""
MOST = 256
"""Peers that are remembered; the ones that were asked first are forgotten."""
DIAL_WITHIN_S = 5.0

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Asked:
    """What came of the last question to a peer."""

    at: float
    """By trio's clock."""
    verified: Verified | None
    why: str = ""
    """Why it has shown nothing."""


class AttestedPeers:
    """The peers of one client.

    Args:
        pool: its channels.
        questions: asks and verifies.
    """

    def __init__(self, pool: ChannelPool, questions: AttestationQuestions) -> None:
        self.questions = questions
        self._pool = pool
        self._asked: dict[PeerId, _Asked] = {}
        self._limiter = trio.CapacityLimiter(AT_ONCE)

    async def refresh(
        self,
        announcements: Iterable[Announcement],
        older_than_s: float = FRESH_S,
        enough: Callable[[], bool] = lambda: False,
    ) -> None:
        """Ask those of whom nothing is known, or nothing new, what they run on. Refusals are remembered.

        Args:
            older_than_s: whom to ask again.
            enough: asked after each answer whether the others need not be waited for.
        """
        now = trio.current_time()
        showing = [a for a in announcements if a.served and a.served.attests]
        due = [a for a in showing if self._due(a, now, older_than_s)][:ASKED_AT_MOST]
        if enough() or not due:
            return
        silent = {PeerId(a.peer) for a in due}
        with trio.move_on_after(ALL_WITHIN_S) as waiting:
            async with trio.open_nursery() as nursery:

                async def ask(announcement: Announcement) -> None:
                    async with self._limiter:
                        await self._ask(announcement)
                    silent.discard(PeerId(announcement.peer))
                    if enough():
                        nursery.cancel_scope.cancel()

                for announcement in due:
                    nursery.start_soon(ask, announcement)
        if waiting.cancelled_caught:
            for peer in silent:  # or each session would wait for them again
                self._note(peer, _Asked(trio.current_time(), None, "it did not answer in time"))

    def verified(self, announcement: Announcement) -> Verified | None:
        """What a peer has shown, as long as it counts, for what it serves now."""
        found, served = self._asked.get(PeerId(announcement.peer)), announcement.served
        if found is None or found.verified is None or served is None:
            return None
        bound = found.verified.binding
        fits = (bound.digest, bound.numerics) == (served.digest, served.numerics)
        return found.verified if fits and trio.current_time() - found.at < FRESH_S else None

    def of(self, peer: PeerId) -> Verified | None:
        """What a peer has shown, whatever it serves."""
        found = self._asked.get(peer)
        return None if found is None or trio.current_time() - found.at >= FRESH_S else found.verified

    def why_not(self, announcements: Iterable[Announcement], most: int = 3) -> str:
        """Why these peers take part in no route, the first of them, in a sentence."""
        told: list[str] = []
        for a in announcements:
            if self.verified(a) is None:
                found = self._asked.get(PeerId(a.peer))
                shows = a.served is not None and a.served.attests
                why = found.why if found is not None and found.why else ""
                told.append(f"{name_of(a.peer)}: {why or ('not asked yet' if shows else 'shows nothing')}")
        more = f"; and {len(told) - most} more" if len(told) > most else ""
        return "; ".join(told[:most]) + more

    def _due(self, announcement: Announcement, now: float, older_than_s: float) -> bool:
        found = self._asked.get(PeerId(announcement.peer))
        if found is None:
            return True
        if found.verified is None:
            return now - found.at >= RETRY_S
        return now - found.at >= older_than_s or self.verified(announcement) is None

    async def _ask(self, announcement: Announcement) -> None:
        peer, served, began = PeerId(announcement.peer), announcement.served, trio.current_time()
        if served is None:
            return
        try:
            channel = await self._pool.get(announcement.address, deadline_s=DIAL_WITHIN_S)
            self._note(peer, _Asked(began, await self.questions.ask(channel, served)))
        except ShoalError as error:
            log.info("%s has not shown what it runs on: %s", peer, error.message)
            # Who could not be asked just now may be in a moment; until then counts what it has shown.
            if isinstance(error, AttestationRefused) or self.of(peer) is None:
                self._note(peer, _Asked(trio.current_time(), None, error.message))

    def _note(self, peer: PeerId, asked: _Asked) -> None:
        self._asked.pop(peer, None)
        self._asked[peer] = asked
        while len(self._asked) > MOST:
            del self._asked[next(iter(self._asked))]


def no_measurements(path: Path) -> UsageError:
    """Peers are to show what they run on, and there is no list of what may."""
    return UsageError(
        f"--attested-only needs a list of measurements, and {path} is not there",
        check="write down which software may run, as docs/attestation.md says, or name the file",
        next_command="shoal run --attested-only --measurements FILE",
    )

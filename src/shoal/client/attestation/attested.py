"""Which peers have shown what they run on, and for how long that counts.

A peer is asked when a route is looked for, and again before it is :data:`FRESH_S` since. Who does not show it
again takes part in no route from then on, and the sessions over it go on elsewhere.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

import trio

from shoal.client.attestation.asking import AttestationQuestions
from shoal.errors import ShoalError, UsageError
from shoal.net.pool import ChannelPool
from shoal.swarm.announcement import Announcement
from shoal.swarm.names import name_of
from shoal.tasks import ends_alone
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
"""Peers that are asked at a time; of those that take longer than :data:`TURN_S`, more."""
TURN_S = 2.0
"""How long one peer's question keeps others waiting; :data:`ASKED_AT_MOST` peers have their turn within
:data:`ALL_WITHIN_S`."""
ASKED_AT_MOST = 64
"""Peers that are asked for one session; anybody can announce more."""
ALL_WITHIN_S = 20.0
"""How long one session waits for their answers."""
MOST = 256
"""Peers that are remembered, beside those in use."""
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
    failures: int = 0
    """In a row, with this one."""

    @property
    def until(self) -> float:
        """Until when it counts: no longer than what it was verified with holds."""
        if self.verified is None:
            return self.at
        return self.at + min(FRESH_S, self.verified.claims.expires - self.verified.since)


@dataclass(eq=False)
class _Question:
    """One that waits for its turn or is under way, for all who want the answer."""

    over: trio.Event = field(default_factory=trio.Event)
    wanted: int = 0
    """By so many; one that nobody wants any more, and that has not begun, is not put."""


class AttestedPeers:
    """The peers of one client.

    Each is asked one question at a time, whoever wants to know; what was asked is answered and noted although
    who wanted it has gone.

    Args:
        pool: its channels.
        questions: asks and verifies.
        start: starts a task that outlives whoever wants an answer. Raises ChannelClosed: nothing runs.
        in_use: over whom sessions go: what they have shown is not forgotten for others' sake.
    """

    def __init__(
        self,
        pool: ChannelPool,
        questions: AttestationQuestions,
        start: Callable[..., None],
        in_use: Callable[[], Collection[PeerId]] = frozenset,
    ) -> None:
        self.questions = questions
        self._pool = pool
        self._start = start
        self._in_use = in_use
        self._asked: dict[PeerId, _Asked] = {}
        self._open: dict[PeerId, _Question] = {}
        self._answered = trio.Event()
        """Set at the next answer, whoever's, and made anew."""
        self._line = trio.CapacityLimiter(AT_ONCE)
        self._random = Random()

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
        due = self._ranked(a for a in showing if self._due(a, now, older_than_s))
        if not due or enough():
            return
        wanted = [question for a in due if (question := self._ask(a)) is not None]
        try:
            with trio.move_on_after(ALL_WITHIN_S):
                while not enough() and not all(question.over.is_set() for question in wanted):
                    await self._answered.wait()
        finally:
            for question in wanted:
                question.wanted -= 1

    def forget(self, peer: PeerId) -> None:
        """What a peer has shown is not true any more."""
        self._asked.pop(peer, None)

    def verified(self, announcement: Announcement) -> Verified | None:
        """What a peer has shown, as long as it counts, for what it serves now."""
        found, served = self.of(PeerId(announcement.peer)), announcement.served
        if found is None or served is None:
            return None
        fits = (found.binding.digest, found.binding.numerics) == (served.digest, served.numerics)
        return found if fits else None

    def of(self, peer: PeerId) -> Verified | None:
        """What a peer has shown, as long as it counts, whatever it serves."""
        found = self._asked.get(peer)
        return None if found is None or trio.current_time() >= found.until else found.verified

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

    def _ranked(self, due: Iterable[Announcement]) -> list[Announcement]:
        """Whom to ask, the first first: who has shown something before, then whom nobody has asked, then who
        has shown nothing, the least often. Among equals chance decides: identities cost nothing, and so many
        silent ones must not be asked before an honest one each time."""

        def rank(announcement: Announcement) -> tuple[int, float]:
            found = self._asked.get(PeerId(announcement.peer))
            if found is None:
                return 1, self._random.random()
            return 1 + found.failures if found.verified is None else 0, self._random.random()

        return sorted(due, key=rank)[:ASKED_AT_MOST]

    def _ask(self, announcement: Announcement) -> _Question | None:
        """The question to a peer: the one there is, or a new one; ``None`` where too many wait."""
        peer = PeerId(announcement.peer)
        question = self._open.get(peer)
        if question is None:
            if len(self._open) >= MOST:
                return None
            question = _Question()
            self._start(self._take_turn, announcement, question)
            self._open[peer] = question
        question.wanted += 1
        return question

    async def _take_turn(self, announcement: Announcement, question: _Question) -> None:
        try:
            async with self._line:
                if not question.wanted:
                    return
                self._start(self._put, announcement, question)
                # Who is silent for longer does not keep the others waiting.
                with trio.move_on_after(TURN_S):
                    await question.over.wait()
            await question.over.wait()
        finally:
            self._end(announcement, question)

    async def _put(self, announcement: Announcement, question: _Question) -> None:
        try:
            with ends_alone(log, f"asking {announcement.peer} what it runs on"):
                await self._put_to(announcement)
        finally:
            self._end(announcement, question)

    def _end(self, announcement: Announcement, question: _Question) -> None:
        if self._open.get(peer := PeerId(announcement.peer)) is question:
            del self._open[peer]
        question.over.set()
        self._answered.set()
        self._answered = trio.Event()

    async def _put_to(self, announcement: Announcement) -> None:
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
                before = self._asked.get(peer)
                failures = 1 + (before.failures if before else 0)
                self._note(peer, _Asked(trio.current_time(), None, error.message, failures))

    def _note(self, peer: PeerId, asked: _Asked) -> None:
        self._asked[peer] = asked
        if len(self._asked) <= MOST:
            return
        in_use, now = self._in_use(), trio.current_time()
        spare = [(found.until > now, found.at, p) for p, found in self._asked.items() if p not in in_use]
        if spare:
            # Who shows nothing goes first: anybody can be many who do.
            del self._asked[min(spare)[2]]


def no_measurements(path: Path) -> UsageError:
    """Peers are to show what they run on, and there is no list of what may."""
    return UsageError(
        f"--attested-only needs a list of measurements, and {path} is not there",
        check="write down which software may run, as docs/attestation.md says, or name the file",
        next_command="shoal run --attested-only --measurements FILE",
    )

"""Peers that have just failed us, and for how long they are avoided. Pure: the caller brings the time."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Literal, get_args

from shoal.types import PeerId

FIRST_S = 1.0
LONGEST_S = 60.0
"""Without a new word of its own, a suspect is asked again after this."""
FORGET_S = 300.0
"""A failure so long ago no longer counts against a peer."""
WORKS_AGAIN = 8
"""Steps through a peer since its last failure, after which the next one is the first again."""
LIMIT = 1024

Caution = Literal["words", "time", "silence"]
"""Who is avoided: until its time is over and it has said something new; until its time is over; or, where
otherwise nobody is left, until either."""
CAUTIONS: tuple[Caution, ...] = get_args(Caution)


@dataclass(frozen=True, slots=True)
class _Suspicion:
    sequence: int
    since: float
    failures: int
    steps: int

    @property
    def hold_s(self) -> float:
        return min(FIRST_S * 2 ** (self.failures - 1), LONGEST_S)


class Suspects:
    """Each failure in a row doubles how long a peer is avoided, however often it announces itself."""

    def __init__(self) -> None:
        self._held: OrderedDict[PeerId, _Suspicion] = OrderedDict()

    def add(self, peer: PeerId, sequence: int, now: float, steps: int = 0) -> None:
        """The peer has failed.

        Args:
            sequence: that of the newest announcement of it that is known.
            steps: that have ever come back through it.
        """
        before = self._held.pop(peer, None)
        if before and (now - before.since >= FORGET_S or steps - before.steps >= WORKS_AGAIN):
            before = None
        count = before.failures if before else 0
        if before and count and now - before.since < FIRST_S:
            count -= 1  # the same failure, seen by another session
        self._held[peer] = _Suspicion(sequence, now, min(count + 1, 16), steps)
        while len(self._held) > LIMIT:
            self._held.popitem(last=False)

    def free_at(self, peer: PeerId) -> float:
        """When the peer may be asked again though it says nothing; past for one that has not failed."""
        suspicion = self._held.get(peer)
        return suspicion.since + suspicion.hold_s if suspicion else 0.0

    def holds(self, peer: PeerId, sequence: int, now: float, caution: Caution) -> bool:
        """Whether the peer, whose newest announcement is ``sequence``, is still to be avoided."""
        suspicion = self._held.get(peer)
        if suspicion is None:
            return False
        silent = sequence <= suspicion.sequence
        if caution == "words":
            return now - suspicion.since < (LONGEST_S if silent else suspicion.hold_s)
        return now - suspicion.since < suspicion.hold_s and (silent or caution == "time")

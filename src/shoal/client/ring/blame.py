"""Who is to blame when a session's hops contradict each other, keep a step, or fail one.

Hops speak for themselves alone. What one says of another is asked of that one; where both say something else,
the two are at odds: the one that has proven itself less goes, or both.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Protocol

import trio

from shoal.client.ring.hop import HopFailed, HopLost
from shoal.client.ring.places import Places
from shoal.errors import DeadlineExceeded, PositionGap, RemoteProtocolError
from shoal.routing.reputation import INVOLVED, REFUSAL, SHARED_FAULT, WHOLE_FAULT, Reputation
from shoal.types import PeerId
from shoal.wire.session import Stuck, where_stuck

LOCATE_S = 1.5
"""How long the hops have to say how far a session has come there."""
ACCUSATIONS = 32
"""Of one session, that wait to be heard."""


class Lose(Protocol):
    """Takes a hop for lost."""

    def __call__(self, index: int, reason: str, *, contested: bool = False) -> None: ...


class Blame:
    """What one session holds against its hops.

    Args:
        replaceable: whether there is a route without these peers.
    """

    def __init__(
        self,
        places: Places,
        reputation: Reputation,
        replaceable: Callable[[set[PeerId]], bool],
        lose: Lose,
    ) -> None:
        self._places = places
        self._reputation = reputation
        self._replaceable = replaceable
        self._lose = lose
        self._accused = deque[tuple[PeerId, PeerId, str]](maxlen=ACCUSATIONS)

    def accuse(self, index: int, gone: str, reason: str) -> None:
        """The hop at ``index`` says that ``gone``, the one after it, is gone."""
        hops = self._places.hops
        # Of one that has been replaced, nobody needs to hear.
        if index + 1 < len(hops) and hops[index + 1].peer == gone:
            self._accused.append((hops[index].peer, hops[index + 1].peer, reason))

    @property
    def accuses(self) -> bool:
        """Whether anybody is said to be gone and was not asked yet."""
        return bool(self._accused)

    async def hear_out(self) -> None:
        """Ask those who are said to be gone. One that answers is at odds with who said so."""
        while self._accused:
            accuser, accused, reason = self._accused.popleft()
            hops = self._places.hops
            index = next((i for i, hop in enumerate(hops) if hop.peer == accused), 0)
            if not index or hops[index - 1].peer != accuser:
                continue  # one of the two has been replaced
            try:
                await self._places.ask_where(index, LOCATE_S)
            except (HopLost, DeadlineExceeded):
                self._lose(index, reason)
            else:
                self.hold_against((index - 1, index), reason, always=True)

    async def find(self, number: int) -> Stuck:
        """Where step ``number`` is."""
        return where_stuck(await self._places.locate(LOCATE_S), number)

    def failed(self, error: HopFailed, *, blameless: bool) -> None:
        """Lose the hop that could not run a step, and who gave it the step if that is what was wrong.

        Args:
            blameless: it may well be opened again.
        """
        index = next((i for i, hop in enumerate(self._places.hops) if hop.peer == error.peer), None)
        if index is None:
            return
        if index and isinstance(error.error, PositionGap | RemoteProtocolError):
            self.hold_against((index - 1, index), error.message, always=True)
            return
        share = REFUSAL if blameless else WHOLE_FAULT
        self._reputation.failed(error.peer, trio.current_time(), share)
        self._lose(index, error.message, contested=blameless)

    def hold_against(self, suspects: Sequence[int], reason: str, *, always: bool = False) -> None:
        """Lose the hop to blame of these, the one that is trusted least; those that are trusted alike all.

        Args:
            always: also where nobody can take its place.
        """
        now = trio.current_time()
        place = {self._places.hops[index].peer: index for index in suspects}
        worst = self._reputation.to_blame(list(place), now)
        # All of them; or, where nobody could replace them all, one alone.
        choices = [worst, *([peer] for peer in worst if len(worst) > 1)]
        possible = (peers for peers in choices if self._replaceable(set(peers)))
        lost = next(possible, worst if always else [])
        if not lost:
            return
        for peer in place:
            share = WHOLE_FAULT if len(place) == 1 else SHARED_FAULT if peer in worst else INVOLVED
            self._reputation.failed(peer, now, share)
        for peer in lost:
            self._lose(place[peer], reason, contested=len(place) > 1)

"""How it is noticed that a hop of a session is lost: it is silent, its channel ends, or it keeps a step.

What a hop says of others, and who goes where hops contradict each other, is weighed in
:mod:`shoal.client.ring.blame`.
"""

from __future__ import annotations

from collections.abc import Callable

import trio

from shoal.client.ring.blame import Blame
from shoal.client.ring.hop import HopLost
from shoal.client.ring.places import Places
from shoal.client.ring.results import Results
from shoal.client.ring.step_timeout import StepTimeout
from shoal.net.channel import Channel
from shoal.routing.reputation import Reputation
from shoal.types import PeerId
from shoal.wire.messages import Failed
from shoal.wire.session import ClientSession

SUSPECT_S = 3.0
"""A hop of which nothing was heard for so long while a step is under way is taken for lost."""
ALSO_S = 2.0
"""The same for a hop beside one that is taken for lost: two pings have gone unanswered."""


class Losses:
    """The lost hops of one session.

    Args:
        rules: which steps are under way.
        results: ended by the first loss.
        replaceable: whether there is a route without these peers.
    """

    def __init__(
        self,
        places: Places,
        rules: ClientSession,
        results: Results,
        reputation: Reputation,
        replaceable: Callable[[set[PeerId]], bool],
    ) -> None:
        self._places = places
        self._rules = rules
        self._results = results
        self.blame = Blame(places, reputation, replaceable, self.lose)
        """Whose word is taken against whose."""

    @property
    def indices(self) -> list[int]:
        """Which hops are gone."""
        return [index for index, hop in enumerate(self._places.hops) if hop.lost is not None]

    def contested(self, index: int) -> bool:
        """Whether a hop was lost to a contradiction between hops alone: it may be asked again."""
        return self._places.hops[index].contested

    def lose(self, index: int, reason: str, *, contested: bool = False) -> None:
        """The hop is gone: everyone who waits hears of it."""
        hop = self._places.hops[index]
        if hop.lost is None:
            hop.lose(reason, contested=contested)
            self._results.end(HopLost(hop.hop, reason))

    def watch(self) -> None:
        """Count hops as lost that have been silent for too long while a step is under way.

        With the first go those that were silent nearly as long: frozen together, they are found together.
        """
        # Between steps a silent hop holds nobody up; its channel ends by itself (``liveness.DEAD_AFTER_S``).
        hops = self._places.hops if self._rules.in_flight else []
        silent = [hop.channel.silent_s if hop.channel and hop.open else 0.0 for hop in hops]
        if max(silent, default=0.0) > SUSPECT_S:
            for index, silent_s in enumerate(silent):
                if silent_s > ALSO_S:
                    self.lose(index, f"nothing heard for {silent_s:.1f} s")

    def lost_channel(self, channel: Channel, reason: str) -> None:
        """A channel has ended, and with it what the hop behind it held of this session."""
        for index, hop in enumerate(self._places.hops):
            if hop.channel is channel:
                self.lose(index, reason)

    def told(self, index: int, message: Failed) -> None:
        """The hop at ``index`` says that the session is over there, or that the way to the next one is."""
        if message.gone is not None:
            self.blame.accuse(index, message.gone, message.message)
            self._results.wake()
        elif message.number is None:
            self.lose(index, message.message)
        else:
            self.lose(index, f"its cache could not be filled: {message.message}")

    async def look(self, timeout: StepTimeout) -> None:
        """Ask the hops where the oldest step is, and lose the one that keeps it, if it can be replaced."""
        oldest, began = self._rules.oldest, trio.current_time()
        if oldest is None:
            return
        stuck = await self.blame.find(oldest.number)
        # The step may have come, or the session been lost or taken back, while the hops were asked.
        if self._results or self._results.broken is not None or self._rules.oldest != oldest:
            return
        now = trio.current_time()
        if timeout.over(stuck, now, now - began):
            self.blame.hold_against(stuck.hops, f"step {oldest.number} has not come back")

    async def give_up(self) -> None:
        """The oldest step's time is over: whoever keeps it is lost, whatever becomes of the session."""
        oldest = self._rules.oldest
        if oldest is not None:
            stuck = await self.blame.find(oldest.number)
            reason = f"step {oldest.number} has not come back"
            self.blame.hold_against(stuck.hops, reason, always=True)

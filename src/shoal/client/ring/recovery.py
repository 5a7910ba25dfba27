"""Puts a session back on a whole route when hops of it are lost, with the tokens that it would have had.

Two ways. *Resend*: other peers take the lost hops' places alone, the hop before each sends again what it had
sent, and every other hop keeps its KV. *Replay*: all is given up, and the client sends every token again over
a new route, in the same pieces as before. The first is tried first; it needs every neighbour to be there and
to have kept what was sent. Either way steps go on by position, so what was in flight is sent again.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal

import trio

from shoal.client.ring.hop import HopFailed, HopLost, RouteHop
from shoal.client.ring.ring import Ring
from shoal.client.ring.rings import Rings
from shoal.errors import (
    Busy,
    ChannelClosed,
    DeadlineExceeded,
    NoCoverage,
    OutdatedPeer,
    PositionGap,
    RemoteProtocolError,
    ShoalError,
    UnknownSession,
)
from shoal.swarm.announcement import PRICED_TOKENS
from shoal.types import ModelShape, PeerId, Span

REPAIR_WITHIN_S = 4.0
"""A resend that takes longer gives way to a replay."""
OPEN_WITHIN_S = 3.0
"""For each hop of a new route at first: one that is frozen must not use up the time there is."""
PATIENCE = 1.5
"""By how much more each time that was too little: an opening that is cut off begins anew, so that of busy
machines none would ever be done."""
LEAST_S = 3.0
"""What is left to recover in, however late the loss was noticed."""
PAUSE_S = 0.25
LONGEST_PAUSE_S = 2.0

RecoveryKind = Literal["resend", "replay"]
Refill = Callable[[Ring, int], Awaitable[None]]
"""Fills the caches of the first so many hops of a ring from the session's tokens."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class RouteChange:
    """What became of a loss."""

    at: float
    """Seconds since the epoch."""
    gap_s: float
    """From the last result before the loss until the route was whole again."""
    lost: tuple[PeerId, ...]
    way: RecoveryKind


class Recovery:
    """What one session does about lost hops.

    Args:
        resume_s: seconds, counted from the last result, in which a route must be found again.
        attested: whether only peers may be used that show what they run on.
    """

    def __init__(self, rings: Rings, shape: ModelShape, resume_s: float, *, attested: bool = False) -> None:
        self.rings = rings
        self._attested = attested
        self._finder = rings.finder_for(attested=attested)
        self._shape = shape
        self.resume_s = resume_s

    async def recover(
        self, ring: Ring, error: ShoalError, *, position: int, since: float, refill: Refill
    ) -> tuple[Ring, tuple[PeerId, ...], RecoveryKind]:
        """The ring to go on with from ``position``: the same one, or a new one without any KV.

        Args:
            error: what ended the step; a hop that could not run it is avoided from now on.
            since: when the last result came, by trio's clock.

        Returns:
            The ring, the peers that were lost, and the way in which the route was made whole.

        Raises:
            NoCoverage: nobody took the lost hops' place in time; names their blocks.
            ShoalError: ``error`` itself when no other route would help, or what hindered the last attempt.
        """
        until = max(since + self.resume_s, trio.current_time() + min(LEAST_S, self.resume_s))
        await self._find_fault(ring, error)
        lost = {ring.route[index].address.peer: ring.route[index].span for index in ring.lost}
        way: RecoveryKind = "resend"
        whole = False
        with trio.move_on_after(REPAIR_WITHIN_S):
            whole = bool(lost) and await self._resent(ring, position, refill)
        if not whole:
            way = "replay"
            # First: the new ring may go through the same nodes, and need the room that this one has there.
            await self.rings.close(ring)
            traced = ring.places.traced
            ring = await self._reopened(ring, error, lost, until)
            if traced is not None:
                ring.places.begin_turn(traced)
        log.info("the route is whole again by %s: %s", way, error.message)
        return ring, tuple(lost), way

    def relieve(self, ring: Ring, *, cached: int, remaining: int) -> None:
        """Give up a hop that has become slow, if that pays: the next step will find another in its place.

        Args:
            cached: tokens so far.
            remaining: tokens that are still to come, at the most.
        """
        for index, pace, seen in ring.slow:
            verdict = self._finder.weigh(ring, self._shape, index, seen, cached=cached, remaining=remaining)
            slow = f"a step takes it {1e3 * seen.step_s:.0f} ms, {1e3 * seen.promised_s:.0f} were promised"
            log.info("%s is slow: %s; %s", ring.route[index], slow, verdict.why)
            if verdict.repair is None:
                pace.bear()
            else:
                ring.losses.lose(index, f"given up as too slow: {slow}")
                return

    async def _find_fault(self, ring: Ring, error: ShoalError) -> None:
        """Mark the hops that are to blame as lost, and do not count on the peers that are gone."""
        if isinstance(error, HopFailed):
            # A hop that has only lost the session, or part of it, may well be opened again.
            blameless = isinstance(error.error, PositionGap | UnknownSession)
            # One that was sent what cannot be is no more to blame than who sent it: see Blame.failed.
            its_own = not blameless and not isinstance(error.error, RemoteProtocolError)
            if its_own and not await self._replaceable(ring, error.peer):
                raise error.error
            ring.losses.blame.failed(error, blameless=blameless)
        for index in ring.lost:
            if not ring.losses.contested(index):
                self._finder.suspect(ring.route[index].address.peer)

    async def _replaceable(self, ring: Ring, peer: PeerId) -> bool:
        """Whether there is a route without a peer. Where only those may be used that show what they run on,
        others are asked before it is said that there is none."""
        possible = partial(self._finder.possible, ring, self._shape, avoid={peer})
        if self._attested and not possible():
            finder, tokens = self._finder, ring.rules.tokens
            await self.rings.have_shown(finder, self._shape, ring.numerics, tokens, ring.span, {peer})
        return possible()

    async def _resent(self, ring: Ring, position: int, refill: Refill) -> bool:
        """Whether others could take the lost hops' places."""
        try:
            replacements = self._finder.replacements(ring, self._shape)
            if any(_beyond_credit(hop, position) for new in replacements for hop in new.hops):
                # Nothing comes back of what fills a cache: it would have to be paid for unseen.
                return False
            fills = await ring.repair(replacements, position, REPAIR_WITHIN_S)
            if fills:
                await refill(ring, fills)
        except ShoalError as error:
            log.info("no repair: %s", error.message)
            return False
        return True

    async def _reopened(self, ring: Ring, error: ShoalError, lost: dict[PeerId, Span], until: float) -> Ring:
        """A ring over a new route, as soon as there is one."""
        pause, within_s = PAUSE_S, OPEN_WITHIN_S
        while True:
            left = until - trio.current_time()
            try:
                return await self._opened_again(ring, min(within_s, max(left, 0.1)))
            # What time may heal: a node may come back, or have room again. Anything else is raised.
            except (NoCoverage, Busy, ChannelClosed, DeadlineExceeded, OutdatedPeer) as hindrance:
                left = until - trio.current_time()
                if left <= 0:
                    raise self._told(hindrance, error, lost) from error
                log.info("no route yet: %s", hindrance.message)
                if isinstance(hindrance, ChannelClosed | DeadlineExceeded):
                    within_s = min(PATIENCE * within_s, self.rings.open_timeout_s)
            # An announcement ends the pause: with it a route may be whole again.
            await self._finder.wait_news(min(pause, left))
            pause = min(2 * pause, LONGEST_PAUSE_S)

    async def _opened_again(self, ring: Ring, timeout_s: float) -> Ring:
        """A ring by the same numerics; where nobody is left who has them, by those that promise no bits.

        It is another session, and so its receipts say by what it was computed.
        """
        again = partial(
            self.rings.open,
            self._shape,
            tokens=ring.rules.tokens,
            span=ring.span,
            timeout_s=timeout_s,
            codec=ring.codec,
            attested=self._attested,
            background=ring.background,
        )
        try:
            return await again(numerics=ring.numerics)
        except NoCoverage:
            if ring.numerics.bits == "any":
                raise
            return await again(numerics=ring.numerics.loose)

    def _told(self, hindrance: ShoalError, error: ShoalError, lost: dict[PeerId, Span]) -> ShoalError:
        """One clear error, that names the blocks."""
        if isinstance(hindrance, Busy | OutdatedPeer) or not lost:
            return hindrance
        missing = hindrance.missing if isinstance(hindrance, NoCoverage) else tuple(lost.values())
        named = ", ".join(str(span) for span in missing)
        among = self._finder.among
        return NoCoverage(
            f"blocks {named} of {self._shape.name} are served by nobody any more{among}, and no node came "
            f"back in {self.resume_s:.0f} s: {error.message}",
            missing=missing,
            check="see shoal status for who serves which blocks",
            next_command=f"shoal serve {self._shape.name} --span {missing[0]}",
        )


def _beyond_credit(hop: RouteHop, position: int) -> bool:
    """Whether a hop must be paid before its cache is filled up to ``position``."""
    price = hop.price
    return price is not None and position * len(hop.span) * price.amount > price.window * PRICED_TOKENS


def recoverable(error: ShoalError) -> bool:
    """Whether another route may help."""
    return isinstance(error, HopLost | HopFailed | DeadlineExceeded | ChannelClosed)

"""Rings over which the rows of an answer go once more, each over other peers with the same boundaries."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import asynccontextmanager
from functools import partial

import trio

from shoal.client.audits.auditors import ENOUGH_S, fault_share, place_of
from shoal.client.audits.findings import Findings
from shoal.client.receipts.pull import AnswerText
from shoal.client.ring.hop import HopNotAsked, HopRefused, RouteHop
from shoal.client.ring.ring import Ring
from shoal.client.ring.rings import Rings
from shoal.client.session import Session
from shoal.errors import ShoalError
from shoal.executor.codecs import join_rows
from shoal.tasks import one_error, seconds_left
from shoal.trust.consensus import REPLICAS, ReplicaOffer, choose_replica
from shoal.trust.independence import Whereabouts, closeness
from shoal.trust.rows import WINDOW, RowLog
from shoal.types import PeerId

OPEN_WITHIN_S = 5.0
OPEN_ROUNDS = 3
"""How often others are asked in the place of peers that refuse, for one replica."""
PIECE = 64
"""Rows of one step."""
IN_FLIGHT = 4
"""Steps of a replica that are on their way at once."""


class Replicas:
    """For one client."""

    def __init__(self, rings: Rings, findings: Findings) -> None:
        self._rings = rings
        self._findings = findings

    @asynccontextmanager
    async def over(
        self, session: Session, text: AnswerText, rows: Sequence[bytes], faults: list[str], until: float
    ) -> AsyncGenerator[list[Ring]]:
        """Rings over which all rows of the answer have gone; closed on the way out.

        Args:
            until: when all have to have come back, the opening included.
        """
        opened, ran = list[Ring](), list[Ring]()

        async def run(ring: Ring) -> None:
            had_s = seconds_left(until)
            try:
                with trio.fail_at(until):
                    await _compute(ring, session, rows)
                ran.append(ring)
            except trio.TooSlowError:
                faults.append("a replica has not computed the answer in time")
                if had_s >= ENOUGH_S:
                    await ring.losses.give_up()  # the hop that has the step is asked for and blamed
            except ShoalError as error:
                faults.append(f"a replica has not computed the answer: {error.message}")

        try:
            await self._open(session, text, opened, faults, until)
            with one_error():
                async with trio.open_nursery() as nursery:
                    for ring in opened:
                        nursery.start_soon(run, ring)
            yield [ring for ring in opened if ring in ran]
        finally:
            for ring in opened:
                await self._rings.close(ring)

    async def _open(
        self, session: Session, text: AnswerText, opened: list[Ring], faults: list[str], until: float
    ) -> None:
        """Open as many replicas as there should be and can be, each on all its hops."""
        first, refused = session.ring, set[PeerId]()
        taken = [[place_of(self._rings, hop.address)] for hop in first.route]
        for _ in range(OPEN_ROUNDS * (REPLICAS - 1)):
            if len(opened) == REPLICAS - 1 or not seconds_left(until):
                break
            route = self._choose(session, taken, refused)
            if route is None:
                break
            within_s = min(OPEN_WITHIN_S, seconds_left(until))
            opening = partial(self._rings.open_over, route, session.shape, first.numerics, text.tokens)
            try:
                opened.append(await opening(within_s, first.codec))
            except HopRefused as error:
                blamed = await self._rings.to_blame(route, error)
                refused |= blamed
                for peer in () if isinstance(error, HopNotAsked) else blamed:
                    self._findings.hold_against(peer, fault_share(error.error, within_s))
                continue
            for places, hop in zip(taken, route, strict=True):
                places.append(place_of(self._rings, hop.address))
        if len(opened) < REPLICAS - 1:
            faults.append(
                f"{len(opened) + 1} of {REPLICAS} replicas were to be had: too few others serve its blocks"
            )
        if any(closeness(a, b) == 2 for at in taken for i, a in enumerate(at) for b in at[:i]):
            faults.append(
                "some replicas share a host or an operator, or tell no host: they may be one operator's"
            )

    def _choose(
        self, session: Session, taken: Sequence[Sequence[Whereabouts]], refused: set[PeerId]
    ) -> list[RouteHop] | None:
        finder, route = self._rings.finder, session.ring.route
        offers = [finder.offers(session.shape, session.ring.numerics, hop.span) for hop in route]
        free = [
            [
                ReplicaOffer(hop.address.peer, place_of(self._rings, hop.address))
                for hop in some
                if hop.address.peer not in refused
            ]
            for some in offers
        ]
        chosen = choose_replica(free, taken)
        if chosen is None:
            return None
        pairs = zip(chosen, offers, strict=True)
        return [next(hop for hop in some if hop.address.peer == peer) for peer, some in pairs]


def _pieces(received: RowLog, tokens: int) -> Iterator[tuple[int, int, int]]:
    """Where each step of a replica begins, its rows, and how many of them are to come back: those that came
    back of the answer, so that the last hop of each signs for the same."""
    held = [bool(received.window(at // WINDOW)[0] >> at % WINDOW & 1) for at in range(tokens)]
    first = 0
    while first < tokens:
        end = first + 1
        while end < min(tokens, first + PIECE) and held[end] == held[first]:
            end += 1
        yield first, end - first, end - first if held[first] else 0
        first = end


async def _compute(ring: Ring, session: Session, rows: Sequence[bytes]) -> None:
    """Send all rows of an answer over a replica's ring, and wait for what comes back."""
    waiting, width = 0, session.shape.hidden_size
    for first, count, wanted in _pieces(session.ring.received, len(rows)):
        if waiting == IN_FLIGHT:
            await ring.receive()
            waiting -= 1
        await ring.send(join_rows(rows[first : first + count], ring.codec, width), ring.codec, count, wanted)
        waiting += 1
    for _ in range(waiting):
        await ring.receive()

"""Opens sessions: a ring over a side of a model and the client's part, by the first numerics to be had."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial

import trio

from shoal.client.ends import SessionEnds
from shoal.client.ring.recovery import Recovery
from shoal.client.ring.ring import Ring
from shoal.client.ring.rings import Rings
from shoal.client.ring.route_finder import RouteFinder
from shoal.client.seq2seq.sides import Side
from shoal.client.session import Session
from shoal.config import Settings
from shoal.errors import Busy, ChannelClosed, DeadlineExceeded, NoCoverage, RemoteProtocolError, ShoalError
from shoal.executor.ends import EndsEngine
from shoal.executor.thread import ComputeThread
from shoal.models.store.local_model import LocalModel
from shoal.types import Format, Numerics
from shoal.wire.cache_names import Beginning

ROUNDS = 4
"""How often a session is asked for, each time of those who were heard of since all others refused: identities
cost a liar little, so there could always be one more."""


LoadEnds = Callable[[LocalModel, Format], Awaitable[EndsEngine]]
OpenRing = Callable[..., Awaitable[Ring]]


@dataclass(frozen=True, slots=True)
class SessionOpener:
    """What a client opens sessions with."""

    rings: Rings
    settings: Settings
    thread: ComputeThread
    """On which the client's part is computed."""
    load_ends: LoadEnds

    @asynccontextmanager
    async def over(
        self,
        local: LocalModel,
        format: Format | None,
        side: Side,
        tokens: int,
        *,
        attested: bool,
        begins: Beginning | None = None,
        background: bool = False,
        loose: bool = False,
    ) -> AsyncGenerator[Session]:
        """A session over a side of a model; closed on the way out.

        Args:
            loose: steps will say of pictures what no receipt does, so that no bits can be promised.
            begins: what it will begin with, if hops may have kept some of it.

        Raises:
            As :meth:`shoal.client.swarm.Swarm.session`.
        """
        opening = partial(self.rings.open, attested=attested, background=background)
        ring, ends = await self._opened(
            local, format, tokens, side, opening, attested=attested, begins=begins, loose=loose
        )
        session = Session(
            ring,
            ends,
            shape=local.shape,
            prefill_chunk=self.settings.prefill_chunk,
            recovery=Recovery(self.rings, local.shape, self.settings.resume_s, attested=attested),
            encoder=side.encoder,
        )
        if begins is not None and ring.held:
            session.take_up(begins.token_ids[: ring.held])
        try:
            yield session
        finally:
            await session.aclose()

    async def _opened(
        self,
        local: LocalModel,
        format: Format | None,
        tokens: int,
        side: Side,
        open_ring: OpenRing,
        *,
        attested: bool,
        begins: Beginning | None = None,
        loose: bool = False,
    ) -> tuple[Ring, SessionEnds]:
        """A ring and the ends; asked for again where all refuse and others are heard of, or where the only
        ones that there are have just failed us.

        Raises what the first format did.
        """
        finder, span, rounds = self.rings.finder_for(attested=attested), side.span, 0
        until = trio.current_time() + self.settings.resume_s  # who is out of reach is waited for no longer
        while True:
            rounds += 1
            ways = await finder.served_numerics(local.shape, span, format)
            if loose:
                ways = list(dict.fromkeys(way.loose for way in ways))
            try:
                return await self._opened_in_one(local, ways, tokens, side, open_ring, begins, finder)
            except NoCoverage:
                if rounds == ROUNDS or not await finder.wait_forgiven(local.shape, span):
                    raise
            except (Busy, ChannelClosed, DeadlineExceeded, RemoteProtocolError) as error:
                if rounds == ROUNDS:
                    raise
                if await finder.hear_of_others(local.shape):
                    continue
                away = isinstance(error, ChannelClosed | DeadlineExceeded) and trio.current_time() < until
                if not away or (
                    finder.held_back(local.shape) and not await finder.wait_forgiven(local.shape, span)
                ):
                    raise

    async def _opened_in_one(
        self,
        local: LocalModel,
        ways: Sequence[Numerics],
        tokens: int,
        side: Side,
        open_ring: OpenRing,
        begins: Beginning | None,
        finder: RouteFinder,
    ) -> tuple[Ring, SessionEnds]:
        """A ring by the first numerics by which one can be had, and the ends. Raises what the first did."""
        refused: ShoalError | None = None
        for numerics in ways:
            try:
                # First: to load the ends for a format takes far longer than to see that nobody has it.
                finder.check_served(local.shape, numerics, side.span)
                return await self._opened_by(local, numerics, tokens, side, open_ring, begins)
            except (NoCoverage, Busy, ChannelClosed, DeadlineExceeded, RemoteProtocolError) as error:
                refused = refused or error
        raise refused or NoCoverage(f"{local.shape.name} is served in no format")

    async def _opened_by(
        self,
        local: LocalModel,
        numerics: Numerics,
        tokens: int,
        side: Side,
        open_ring: OpenRing,
        begins: Beginning | None,
    ) -> tuple[Ring, SessionEnds]:
        engine = await self.load_ends(local, numerics.format)
        ends = await side.ends(engine, self.thread, local.shape.hidden_size)
        try:
            await ends.open(tokens)
            # Of what blocks of this machine or an encoder hold too, hops have kept nothing.
            kept = begins if ends.hops_have_all else None
            return await open_ring(local.shape, numerics, tokens, span=side.span, begins=kept), ends
        except BaseException:
            ends.close()
            raise

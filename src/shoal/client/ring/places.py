"""The hops of one session in their places: entered, asked, and replaced when they are lost."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import trio

from shoal.client.paying.accounts import GivenWork
from shoal.client.paying.terms import HopBill, TermsOf, no_terms
from shoal.client.paying.work import HopWork, RingWork
from shoal.client.ring.hop import HopLost, HopNotAsked, RingHop, RouteHop
from shoal.errors import ChannelClosed, DeadlineExceeded, OutdatedPeer, RemoteProtocolError, ShoalError
from shoal.metrics.tracing import TraceContext
from shoal.net.channel import Channel
from shoal.net.pool import ChannelPool
from shoal.tasks import seconds_left
from shoal.types import Codec, ModelShape, Numerics, SessionId
from shoal.wire.cache_names import CacheKey, KeepCache, names_for
from shoal.wire.codec import coarsest
from shoal.wire.fields import NextHop
from shoal.wire.messages import Close, GetReceipts, Locate, Located, Open, Reroute, Rerouted, SignedWindow
from shoal.wire.turn import TraceTurn
from shoal.wire.versions import known_codec

WAY_BYTES_S = 4e6
"""What a slow way between two hops takes in a second, unless one of ours is known as slower."""
KEEP_WITHIN_S = 1.0

_Reply = TypeVar("_Reply")


@dataclass(frozen=True, slots=True)
class Replacement:
    """Hops that take the place of ``first`` to ``last``, indexes into the route, ``last`` included."""

    first: int
    last: int
    hops: tuple[RouteHop, ...]


class Places:
    """Who is at which position of a session's route.

    Args:
        tokens: what every hop reserves KV for.
        codec: the session's; ``None`` where it is yet to be chosen.
        caches: keys of the beginnings that hops may have kept.
        terms: what each hop is told of who asks and how it will be paid.
        background: whether nobody waits for the session.
    """

    def __init__(
        self,
        session: SessionId,
        shape: ModelShape,
        route: Sequence[RouteHop],
        pool: ChannelPool,
        *,
        numerics: Numerics,
        tokens: int,
        codec: Codec | None,
        caches: Sequence[CacheKey] = (),
        terms: TermsOf = no_terms,
        background: bool = False,
    ) -> None:
        self._terms = terms
        self._session = session
        self._shape = shape
        self._pool = pool
        self._numerics = numerics
        self._tokens = tokens
        self._caches = caches
        self.background = background
        self.session_codec: Codec | None = codec
        """In which hidden states travel, once that is chosen: a hop that does not know it takes no part."""
        self._former: list[Channel] = []
        self._turn: TraceTurn | None = None
        self.traced: TraceContext | None = None
        """For which span of a trace the steps are; ``None``: for none."""
        self.hops = [RingHop(hop) for hop in route]
        self.departed: list[RingHop] = []
        """Those that have lost their places."""

    @property
    def route(self) -> tuple[RouteHop, ...]:
        """The hops in their order."""
        return tuple(hop.hop for hop in self.hops)

    def asked_codec(self, first: Codec) -> Codec:
        """What the slowest way of the session asks for, as far as every hop knows that codec.

        Of the hops only those are heard who have answered before: a word of the others could round
        everybody's numbers.

        Args:
            first: what the way to the first hop asks for. Of the ways between them, and from the last one to
                us, the hops have said it.
        """
        asked = coarsest((first, *(hop.codec for hop in self.hops if hop.hop.proven)))
        versions = [hop.channel.version for hop in self.hops if hop.channel is not None]
        return known_codec(asked, min(versions))

    @property
    def held(self) -> tuple[int, Codec] | None:
        """How many tokens every hop has kept, and in which codec they came; ``None`` where one has nothing,
        or they had different sessions."""
        held, codec = min(hop.held for hop in self.hops), self.hops[0].held_codec
        return (held, codec) if held and all(hop.held_codec == codec for hop in self.hops) else None

    async def keep(self, keys: Sequence[CacheKey]) -> None:
        """Tell every hop by which names it is to keep the session's KV, as far as they take it within
        ``KEEP_WITHIN_S``: one that is gone, or does not read, keeps nothing.

        Where a hop was replaced, none keeps any: those behind it have KV that came by two ways.
        """
        keys = () if self.departed else keys

        async def tell(index: int, channel: Channel) -> None:
            with suppress(ChannelClosed, OutdatedPeer):
                await channel.send(KeepCache(self._session, names_for(keys, self._way(index))))

        channels = [(index, hop.channel) for index, hop in enumerate(self.hops)]
        with trio.move_on_after(KEEP_WITHIN_S):
            await _together([partial(tell, i, channel) for i, channel in channels if channel is not None])

    @property
    def bills(self) -> list[HopBill]:
        """What the hops may ask for that are to be paid, those that have lost their places among them, and
        those that are only just being asked to take one."""
        return [
            HopBill(hop.peer, hop.hop.price, len(hop.hop.span), hop.work or HopWork(RingWork()), hop.channel)
            for hop in (*self.hops, *self.departed)
            if hop.hop.price is not None
        ]

    @property
    def most_step_tokens(self) -> int | None:
        """Tokens of a step that each hop gives credit for, with others beside it; ``None``: of any."""
        bills = self.bills
        return min(bill.step_tokens for bill in bills) if bills else None

    @property
    def given(self) -> list[GivenWork]:
        """What the hops have given that keep credits."""
        return [
            GivenWork(hop.peer, hop.work.came * len(hop.hop.span), hop.channel)
            for hop in (*self.hops, *self.departed)
            if hop.credits and hop.work is not None
        ]

    def link_bytes_s(self, index: int) -> float:
        """What the link to a hop takes in a second, as far as that is known."""
        channel = self.hops[index].channel
        return (channel.bytes_s if channel is not None else None) or WAY_BYTES_S

    def place(self, channel: Channel) -> int | None:
        """Which hop is behind a channel; ``None`` for one that has lost its place and may not know yet.

        Raises:
            RemoteProtocolError: it never had one.
        """
        for index, hop in enumerate(self.hops):
            if hop.channel is channel:
                return index
        if channel not in self._former:
            raise RemoteProtocolError(f"{channel.peer} is no hop of this session")
        return None

    async def enter(self, timeout_s: float) -> None:
        """Open the session, on every hop at once, where it is not open.

        Raises:
            HopRefused: a hop cannot be reached, has no room, or serves something else; names the hop.
        """
        opening = [index for index, hop in enumerate(self.hops) if not hop.open]
        await _together([partial(self._enter, index, timeout_s) for index in opening])

    def begin_work(self, work: RingWork, refilled: int = 0) -> None:
        """Count from now on what those are asked to do that have just been entered.

        Args:
            refilled: tokens for which their caches are filled.
        """
        for hop in self.hops:
            if hop.work is None:
                hop.work = HopWork(work, refilled)

    async def replace(self, replacements: Sequence[Replacement], position: int, timeout_s: float) -> int:
        """Put other hops in the place of lost ones, and have them sent again what is below ``position``.

        Returns:
            How many hops, from the first on, have nobody before them to do so.

        Raises:
            HopRefused: a new hop does not take part.
            HopLost, DeadlineExceeded: an old hop is gone too.
            ChannelClosed: what a new hop needs was not kept.
        """
        self._caches = ()  # new hops are sent all that they are to have
        fills = self._put_in_place(replacements)
        self.go_back(position)
        self._note_entered(fills, position)
        # Before the new ones are open, who need not be told of their neighbours a second time.
        kept = [index for index, hop in enumerate(self.hops) if hop.open]
        until = trio.current_time() + timeout_s
        # The new hops first: an old one that is told of its new neighbour sends it steps at once.
        await self.enter(timeout_s)
        left = seconds_left(until)
        await _together([partial(self._reroute, i, fills.get(i + 1), position, left) for i in kept])
        return fills.get(0, 0)

    def begin_turn(self, context: TraceContext | None) -> None:
        """Tell the hops, those to come too, for which span of a trace the steps from here on are.

        Args:
            context: ``None``: for none.
        """
        turn, self.traced = TraceTurn(self._session), context
        if context is not None:
            turn = TraceTurn(self._session, context.trace, context.span, context.sampled)
        self._turn = turn if turn.trace else None
        for hop in self.hops:
            hop.tell(turn)

    def go_back(self, position: int) -> None:
        """What comes from ``position`` on comes anew, from who is in its place now."""
        for hop in self.hops:
            hop.entered = min(hop.entered, position)

    async def locate(self, timeout_s: float) -> list[Located | None]:
        """How far the session has come at each hop; ``None`` of one that does not say."""
        found: list[Located | None] = [None] * len(self.hops)

        async def ask(index: int) -> None:
            with suppress(HopLost, DeadlineExceeded):
                found[index] = await self.ask_where(index, timeout_s)

        await _together([partial(ask, index) for index in range(len(self.hops))])
        return found

    async def ask_where(self, index: int, timeout_s: float) -> Located | None:
        """How far the session has come at one hop.

        Raises:
            HopLost, DeadlineExceeded: it is gone, or does not reply in time.
        """
        reply = await self.hops[index].ask(Locate(self._session), timeout_s)
        return reply if isinstance(reply, Located) else None

    async def receipts(
        self, nonce: bytes, tokens: int, timeout_s: float
    ) -> list[list[SignedWindow] | ShoalError]:
        """What each hop signs for the first ``tokens`` positions, all asked at once, or why it does not."""
        question = GetReceipts(self._session, nonce, tokens)
        return await self._asked(lambda hop: hop.receipts(question, timeout_s))

    async def commitments(self, nonce: bytes, tokens: int, timeout_s: float) -> list[bytes | ShoalError]:
        """What they say of these receipts before any of them shows its own."""
        question = GetReceipts(self._session, nonce, tokens)
        return await self._asked(lambda hop: hop.commitment(question, timeout_s))

    async def _asked(self, ask: Callable[[RingHop], Awaitable[_Reply]]) -> list[_Reply | ShoalError]:
        """What each hop answers, all asked at once, or why it does not."""
        found: list[_Reply | ShoalError] = [ChannelClosed("it was not asked")] * len(self.hops)

        async def one(index: int) -> None:
            try:
                found[index] = await ask(self.hops[index])
            except ShoalError as error:
                found[index] = error

        await _together([partial(one, index) for index in range(len(self.hops))])
        return found

    async def leave(self) -> None:
        """Tell every hop to free its KV, all at once: one that takes nothing must not keep others waiting.

        A hop that cannot be told frees it when the channel ends.
        """

        async def tell(channel: Channel) -> None:
            with suppress(ChannelClosed):
                await channel.send(Close(self._session))

        channels = [hop.channel for hop in self.hops if hop.channel is not None]
        await _together([partial(tell, channel) for channel in channels if not channel.closed])

    async def _enter(self, index: int, timeout_s: float) -> None:
        hop = self.hops[index]
        span = hop.hop.span
        try:
            terms = await self._terms(hop.peer, hop.hop.price, span)
        except ShoalError as error:
            raise HopNotAsked(hop.peer, error) from error
        message = Open(
            self._session,
            self._shape.digest,
            self._numerics.format,
            span.start,
            span.end,
            self._tokens,
            index,
            self._before(index),
            self._after(index),
            str(self._numerics),
            self._key_before(index),
            self._shape.adapter or "",
            names_for(self._caches, self._way(index)),
            terms.credit,
            terms.payment,
            self.background,
        )
        await hop.enter(self._pool, message, timeout_s, self.session_codec)
        if self._turn is not None:
            hop.tell(self._turn)

    async def _reroute(self, index: int, fills: int | None, position: int, timeout_s: float) -> None:
        resend = None if fills is None else position
        message = Reroute(
            self._session,
            index,
            self._before(index),
            self._after(index),
            resend,
            fills or 1,
            self._key_before(index),
        )
        reply = await self.hops[index].ask(message, timeout_s)
        if isinstance(reply, Rerouted) and not reply.kept:
            raise ChannelClosed(f"{self.hops[index].hop} has not kept what the next one needs")

    def _way(self, index: int) -> str:
        """The peers through which tokens come to a hop, itself the last."""
        return " ".join(hop.peer for hop in self.hops[: index + 1])

    def _before(self, index: int) -> str | None:
        return self.hops[index - 1].peer if index else None

    def _after(self, index: int) -> NextHop | None:
        if index + 1 == len(self.hops):
            return None
        hop = self.hops[index + 1].hop
        return NextHop.of(hop.address, hop.noise_key)

    def _key_before(self, index: int) -> bytes:
        return self.hops[index - 1].hop.noise_key if index else b""

    def _put_in_place(self, replacements: Sequence[Replacement]) -> dict[int, int]:
        """The new route. Returns how many hops are new from each index on at which new ones begin."""
        hops = list(self.hops)
        fills: dict[int, int] = {}
        shift = 0
        for new in sorted(replacements, key=lambda replacement: replacement.first):
            first, last = new.first + shift, new.last + shift
            for gone in hops[first : last + 1]:
                self._dismiss(gone)
            hops[first : last + 1] = [RingHop(hop) for hop in new.hops]
            fills[first] = len(new.hops)
            shift += len(new.hops) - (last + 1 - first)
        self.hops = hops
        return fills

    def _note_entered(self, fills: Mapping[int, int], position: int) -> None:
        """Arguments: what :meth:`_put_in_place` returned, and up to where the new hops are sent again."""
        for first, count in fills.items():
            self.hops[first + count - 1].entered = position
            if first:
                self.hops[first - 1].entered = 0  # it sends all of it again itself

    def _dismiss(self, hop: RingHop) -> None:
        if hop.work is not None:
            hop.work.end()
        self.departed.append(hop)
        if hop.channel is not None:
            # Remembered, as it may go on for a while to send what is then no breach of the protocol.
            self._former.append(hop.channel)
            with suppress(ChannelClosed):  # then it is free already
                hop.channel.send_now(Close(self._session))


async def _together(tasks: Sequence[Callable[[], Awaitable[None]]]) -> None:
    """Run ``tasks`` side by side. The first that fails ends the others, and its error is raised."""
    failed: list[ShoalError] = []
    async with trio.open_nursery() as nursery:

        async def run(task: Callable[[], Awaitable[None]]) -> None:
            try:
                await task()
            except ShoalError as error:
                failed.append(error)
                nursery.cancel_scope.cancel()

        for task in tasks:
            nursery.start_soon(run, task)
    if failed:
        raise failed[0]

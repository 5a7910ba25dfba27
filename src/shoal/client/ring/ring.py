"""The blocks of a model, wherever they are: hidden states go in at the first hop and come back from the last.

Each hop sends straight to the next, so a step costs N+1 one-way latencies, not 2N. Several steps may be on
their way; results come back in the order in which the steps were sent.

When hops are lost, others can take their place (:meth:`Ring.repair`) while those that are left keep their KV.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress

import trio

from shoal.client.paying.terms import TermsOf, no_terms
from shoal.client.paying.work import RingWork
from shoal.client.ring.hop import HopFailed, HopLost, HopReply, RouteHop
from shoal.client.ring.hop_pace import HopPace
from shoal.client.ring.losses import Losses
from shoal.client.ring.places import Places, Replacement
from shoal.client.ring.prefill import LinkWidth, link_width
from shoal.client.ring.results import Results, Returned
from shoal.client.ring.ring_times import RingTimes
from shoal.client.ring.step_timeout import StepTimeout
from shoal.errors import (
    ChannelClosed,
    DeadlineExceeded,
    LocalProtocolError,
    OutdatedPeer,
    RemoteProtocolError,
    ShoalError,
    from_code,
)
from shoal.executor.kernels.decode_steps import AwaitedResult, RanStep
from shoal.metrics.trace import Trace
from shoal.net.channel import Channel
from shoal.net.pool import ChannelPool
from shoal.routing.replace import StepTimes
from shoal.routing.reputation import Reputation
from shoal.trust.rows import RowLog, row_hashes
from shoal.types import CarrierName, Codec, Format, ModelShape, Numerics, PeerId, SessionId, Span
from shoal.wire.cache_names import CacheKey
from shoal.wire.codec import choose_codec
from shoal.wire.fields import Grid
from shoal.wire.messages import Failed, Step, Stretch, decode
from shoal.wire.payload import encoded_bytes, hidden_states
from shoal.wire.session import ClientSession, Issued

RingMessage = HopReply | Step | Failed
"""What hops say of a session to its client."""
IN_FLIGHT = 32
"""Steps on their way at once. Half of what may wait at a hop (``hop_queue.MAX_STEPS``), so that all can be
sent again while those that were given up still wait there."""


class Ring:
    """One session over one route. Made by :meth:`open`; closed by :meth:`aclose`."""

    def __init__(
        self,
        pool: ChannelPool,
        shape: ModelShape,
        route: Sequence[RouteHop],
        *,
        numerics: Numerics,
        codec: Codec | None,
        tokens: int,
        step_timeout_s: float,
        trace: Trace,
        reputation: Reputation,
        replaceable: Callable[[Ring, set[PeerId]], bool],
        caches: Sequence[CacheKey] = (),
        terms: TermsOf = no_terms,
        background: bool = False,
    ) -> None:
        self.work = RingWork()
        """What was asked of the hops, and what has come back."""
        self.reputation = reputation
        self.session = SessionId(os.urandom(16))
        self.rules = ClientSession(tokens, IN_FLIGHT)
        self.places = Places(
            self.session,
            shape,
            route,
            pool,
            numerics=numerics,
            tokens=tokens,
            codec=codec,
            caches=caches,
            terms=terms,
            background=background,
        )
        self.held = 0
        """Tokens of which every hop had the KV when it was opened."""
        self._shape = shape
        self.numerics = numerics
        """By which every hop computes."""
        self._asked: Codec = "float32"  # by the links, when the ring was opened
        self._step_timeout_s = step_timeout_s
        self._results = Results()
        self._loop = trio.lowlevel.current_trio_token()
        self._clock = trio.lowlevel.current_clock()  # asked from any thread
        self._giving_up = threading.Lock()  # a step that is given up is not sent after it
        self._times = RingTimes(self.places, self.session, trace, shape.hidden_size, IN_FLIGHT)
        self.received = RowLog()
        """Hashes of the rows that the last hop has given us."""
        self.losses = Losses(
            self.places, self.rules, self._results, reputation, lambda peers: replaceable(self, peers)
        )

    @property
    def route(self) -> tuple[RouteHop, ...]:
        """The hops in their order."""
        return self.places.route

    @property
    def background(self) -> bool:
        """Whether nobody waits for it."""
        return self.places.background

    @property
    def span(self) -> Span:
        """The blocks that the hops run together."""
        route = self.route
        return Span(route[0].span.start, route[-1].span.end)

    @property
    def carriers(self) -> list[CarrierName]:
        """How each hop is reached from here."""
        return [hop.channel.carrier for hop in self.places.hops if hop.channel]

    @property
    def lost(self) -> list[int]:
        """Which hops are gone."""
        return self.losses.indices

    @property
    def rolls_back(self) -> bool:
        """Whether every hop's cache can return to any earlier position."""
        return all(hop.rolls_back for hop in self.places.hops)

    @property
    def answered(self) -> bool:
        """Whether :meth:`receive` would not wait."""
        return bool(self._results) or self._results.broken is not None

    @property
    def awaited(self) -> AwaitedResult | None:
        """The next result, if nothing is to be done with it but to send what follows."""
        step, first, last = self.rules.only, self.places.hops[0].channel, self.places.hops[-1].channel
        if step is None or not step.plain:
            return None
        if first is None or last is None or first.full or self.answered or self.slow:
            return None
        limit = self.rules.tokens - 1
        return AwaitedResult(step.number, step.position, limit, last.number, self.codec, first.next_number())

    @property
    def slow(self) -> list[tuple[int, HopPace, StepTimes]]:
        """Which hops have taken much longer than they promised, for long."""
        paces = [(index, hop.pace, hop.pace.slow) for index, hop in enumerate(self.places.hops)]
        return [(index, pace, seen) for index, pace, seen in paces if seen is not None]

    @property
    def paces(self) -> list[tuple[RouteHop, HopPace]]:
        """How fast each hop has decoded."""
        return [(hop.hop, hop.pace) for hop in self.places.hops]

    @property
    def width(self) -> LinkWidth:
        """What is known by now of the links that a prompt goes over."""
        if self._asked != "float32":
            return "thin"
        row_bytes = encoded_bytes(1, self._shape.hidden_size, self.codec)
        return link_width(row_bytes, self.first.bytes_s, self.first.rtt_s, self._slowest_s)

    @property
    def format(self) -> Format:
        """How every hop holds its weights."""
        return self.numerics.format

    async def open(self, timeout_s: float) -> None:
        """Open the session, on every hop at once, where it is not open.

        Raises:
            HopRefused: a hop cannot be reached, has no room, or serves something else; names the hop.
        """
        await self.places.enter(timeout_s)
        places = self.places
        if (held := places.held) is not None and places.session_codec in (None, held[1]):
            self.held, places.session_codec = held
            self.rules.take_up(self.held)
        places.begin_work(self.work)
        self._asked = places.asked_codec(self._first_asks())
        if places.session_codec is None:
            # fp32 promises the bits of the whole model, whatever a hop asks for.
            exact = self.format == "fp32"
            places.session_codec = "float32" if exact else self._asked

    async def repair(self, replacements: Sequence[Replacement], position: int, timeout_s: float) -> int:
        """Put other hops in the place of lost ones; their caches are filled up to ``position``.

        What a lost hop was sent, the hop before it sends again; where the first hop is new, that is the
        caller's part, with :meth:`fill`.

        Returns:
            How many hops, from the first on, the caller must fill.

        Raises:
            HopRefused: a new hop does not take part.
            HopLost, DeadlineExceeded: an old hop is gone too.
            ChannelClosed: what a new hop needs was not kept. After any error the ring is to be given up.
        """
        with self._giving_up:
            self.rules.roll_back(position)
        # After the roll-back: whatever old hops still send answers steps that were given up, and is dropped.
        self._results.begin_again()
        if any(replacement.last == len(self.route) - 1 for replacement in replacements):
            self.received.forget(position)  # the new last hop cannot sign for what the lost one has sent
        fills = await self.places.replace(replacements, position, timeout_s)
        self.places.begin_work(self.work, position)
        return fills

    async def fill(
        self,
        payload: bytes,
        codec: Codec,
        position: int,
        tokens: int,
        hops: int,
        sequence_length: int = 0,
        mutual: tuple[Stretch, ...] = (),
        grids: tuple[Grid, ...] = (),
    ) -> None:
        """Send the first ``hops`` hops hidden states for their caches; nothing comes back.

        Raises:
            ChannelClosed: the first hop is gone.
        """
        tensors = hidden_states(codec, tokens, self._shape.hidden_size)
        # Number 0, as steps are counted from 1: a failure of this one is known for what it is.
        told = sequence_length, mutual, grids
        step = Step(self.session, 0, position, tokens, 0, tensors, (), hops - 1, *told)
        await self._send(step, payload)

    @property
    def codec(self) -> Codec:
        """How hidden states travel, on every way of the session and for as long as it lasts."""
        if self.places.session_codec is None:
            raise LocalProtocolError("a step before the session is open")
        return self.places.session_codec

    def issue(
        self,
        tokens: int,
        wanted: int,
        sequence_length: int = 0,
        mutual: tuple[Stretch, ...] = (),
        grids: tuple[Grid, ...] = (),
    ) -> Issued:
        """Number the next step, which :meth:`launch` sends.

        Args:
            sequence_length, mutual, grids: as a step's.

        Raises:
            LocalProtocolError: it does not fit into the session.
            ShoalError: the session is lost.
        """
        if self._results.broken is not None:
            raise self._results.broken
        issued = self.rules.issue(tokens, wanted, sequence_length, mutual, grids)
        self.work.sent(issued.number, tokens)
        return issued

    def launch(self, issued: Issued, payload: bytes, codec: Codec) -> Callable[[], None] | None:
        """Gather the hidden states of a step for sending, on any thread, unless it was given up meanwhile.

        Returns:
            What sends them, unless it was returned before and is still to be called.

        A channel that has gone is no error here: :meth:`receive` tells that the session is lost.
        """
        channel, step = self.first, self._made(issued, codec)
        # Before the sending: the result may be back before this thread gets to its next line.
        self._times.sent(issued, self._clock.current_time())
        # The loop cannot give the step up between the look and the sending.
        with self._giving_up, suppress(ChannelClosed):
            if self.rules.flies(issued) and channel.gather(step, payload):
                return channel.flush
        return None

    def abandon(self, issued: Issued, error: ShoalError) -> None:
        """A step cannot be sent, as what it was to carry could not be computed: who waits for it hears why.

        From any thread. One that was given up meanwhile is waited for by nobody.
        """
        with suppress(trio.RunFinishedError):
            self._loop.run_sync_soon(self._come_to_nothing, issued.number, error)

    async def send(
        self,
        payload: bytes,
        codec: Codec,
        tokens: int,
        wanted: int,
        sequence_length: int = 0,
        mutual: tuple[Stretch, ...] = (),
        grids: tuple[Grid, ...] = (),
    ) -> None:
        """Send ``tokens`` rows of hidden states, encoded in ``codec``, on their way.

        Args:
            sequence_length, mutual, grids: as a step's.

        Raises:
            LocalProtocolError: they do not fit into the session.
            ShoalError: the session is lost.
        """
        issued = self.issue(tokens, wanted, sequence_length, mutual, grids)
        self._times.sent(issued, self._clock.current_time())
        await self._send(self._made(issued, codec), payload)

    async def _send(self, step: Step, payload: bytes) -> None:
        try:
            await self.first.send(step, payload)
        except (ChannelClosed, OutdatedPeer) as error:
            self.losses.lose(0, error.message)
            raise HopLost(self.places.hops[0].hop, error.message) from error

    def _made(self, issued: Issued, codec: Codec) -> Step:
        return Step(
            self.session,
            issued.number,
            issued.position,
            issued.tokens,
            issued.wanted,
            hidden_states(codec, issued.tokens, self._shape.hidden_size),
            sequence_length=issued.sequence_length,
            mutual=issued.mutual,
            grids=issued.grids,
        )

    async def receive(self) -> Returned:
        """The result of the oldest step in flight.

        A step that takes much longer than it should is looked for, and hops that keep it are taken for lost
        where others can take their place.

        Raises:
            HopLost: a hop is gone, or has let the step's time pass.
            HopFailed: a hop could not run the step.
        """
        results, now = self._results, trio.current_time()
        timeout, until = (
            StepTimeout(self._times.expected_s(self.rules.oldest), now),
            now + self._step_timeout_s,
        )
        while not results and trio.current_time() < until:
            if self.losses.blame.accuses:
                with trio.move_on_at(until):
                    await self.losses.blame.hear_out()
            if results.broken is not None:
                raise results.broken
            # News, and the loop begins again with it; no news by then, and the step is looked for.
            with trio.move_on_at(min(timeout.look_at, until)):
                await results.news.wait()
                continue
            with trio.move_on_at(until):
                await self.losses.look(timeout)
        if results:
            return results.take()
        await self.losses.give_up()
        raise results.broken or DeadlineExceeded(f"no result within {self._step_timeout_s:.0f} s")

    async def sent_rows(self, index: int, tokens: int, timeout_s: float, first: int = 0) -> list[bytes]:
        """The rows that a hop says it has sent on. As :meth:`RingHop.sent_rows`."""
        row_bytes = encoded_bytes(1, self._shape.hidden_size, self.codec)
        return await self.places.hops[index].sent_rows(self.session, tokens, row_bytes, timeout_s, first)

    def roll_back(self, position: int) -> None:
        """Go on from ``position``: with the next step, every hop forgets what it computed beyond it."""
        with self._giving_up:
            self.rules.roll_back(position)
        self.places.go_back(position)
        self._results.cut(position)

    def end(self) -> None:
        """No more steps: whoever waits for one hears of it."""
        self._results.end(ChannelClosed("the session was closed"))

    def stop(self, error: ShoalError) -> None:
        """No more steps, and nobody can take a hop's place: whoever waits for a step is told ``error``."""
        self._results.end(error)

    async def aclose(self) -> None:
        """Tell every hop to free its KV. A hop that cannot be told frees it when the channel ends."""
        await self.places.leave()

    def deliver(self, channel: Channel, message: RingMessage, payload: bytes) -> None:
        """Take what a hop of this session has sent."""
        hop = self.places.place(channel)
        if hop is None:
            return
        match message:
            case Step():
                self._returned(hop, message, payload, self._clock.current_time())
            case Failed():
                self._failed(hop, message)
            case _:
                self.places.hops[hop].replied(message, payload)

    def went_on(self, step: RanStep, came: float, sent: float) -> None:
        """A result was answered where it came (:mod:`shoal.client.ring.at_once`): the step that follows is on
        its way. The times are trio's."""
        message = decode(step.header, len(step.came))
        if not isinstance(message, Step):
            raise LocalProtocolError(f"a {type(message).__name__} was answered")
        self._returned(len(self.places.hops) - 1, message, step.came, came, step.token)
        issued = self.rules.issue(1, 1)
        self.work.sent(issued.number, 1)
        self._times.sent(issued, sent)

    @property
    def first(self) -> Channel:
        """The channel to the first hop."""
        first = self.places.hops[0].channel
        if first is None:
            raise LocalProtocolError("a step before the session is open")
        return first

    def uses(self, channel: Channel) -> bool:
        """Whether a hop is reached over ``channel``."""
        return any(hop.channel is channel for hop in self.places.hops)

    def _first_asks(self) -> Codec:
        """What the way to the first hop asks for."""
        return choose_codec(self.format, self.first.bytes_s, self._shape.hidden_size, self._slowest_s)

    @property
    def _slowest_s(self) -> float:
        """What a decode step takes at the slowest hop, as promised."""
        return max(hop.hop.promised_s for hop in self.places.hops)

    def _returned(
        self, hop: int, message: Step, payload: bytes, came: float, token: int | None = None
    ) -> None:
        if hop != len(self.places.hops) - 1:
            raise RemoteProtocolError("a result from a hop that is not the last")
        try:
            hidden = message.hidden
            if hidden.width != self._shape.hidden_size:
                raise RemoteProtocolError(f"a result of width {hidden.width}")
            if hidden.codec != self.places.session_codec:
                raise RemoteProtocolError(f"a result in {hidden.codec} in a session of {self.codec}")
            issued = self.rules.returned(message)
        except RemoteProtocolError as error:
            # Each hop passes on what it was given, so any of them may have written this.
            self.losses.blame.hold_against(range(len(self.places.hops)), error.message, always=True)
            return
        self.work.came_back(message.number)
        if issued is not None:
            took_s = self._times.returned(issued, message.times, came)
            self._results.add(
                Returned(payload, hidden.codec, hidden.rows, issued, message.times, took_s, token)
            )
            hashes = row_hashes(payload, hidden.codec, hidden.rows, hidden.width)
            self.received.note(issued.position, issued.tokens, hashes)
            # A result has been through every hop, so each of them has shown that it works.
            self.reputation.answered(hop.peer for hop in self.places.hops)

    def _failed(self, index: int, message: Failed) -> None:
        if message.gone is not None or not message.number:  # steps that fill caches have the number 0
            self.losses.told(index, message)
            return
        hop = self.places.hops[index].hop
        error = HopFailed(hop, from_code(message.code, f"{hop}: {message.message}"))
        self._come_to_nothing(message.number, error)

    def _come_to_nothing(self, number: int, error: ShoalError) -> None:
        with self._giving_up:
            known = self.rules.failed(number)
        if known:
            self._results.add(error)

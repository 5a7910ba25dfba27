"""Who is let in: what an ``Open`` must say, and what happens until its session is open or refused. And how a
node that leaves lets nobody in any more.

Room is shared out by :mod:`shoal.node.fair_share`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Literal, Protocol

import trio

from shoal.errors import (
    Busy,
    ChannelClosed,
    DigestMismatch,
    NotAllowed,
    ShoalError,
    StepFailed,
)
from shoal.executor.engine import Engine, StepOutput
from shoal.metrics.logs import about
from shoal.net.channel import Channel
from shoal.net.pool import ChannelPool
from shoal.node.hop import Hop
from shoal.node.load import LoadMeter
from shoal.node.paying.credit_desk import CreditDesk
from shoal.node.paying.payment import PaymentDesk
from shoal.node.resend_buffer import ResendBudget
from shoal.node.sessions import Opening, Sessions
from shoal.swarm.member import Member
from shoal.types import AdapterDigest, Codec, Digest, Numerics, PeerId, SessionId, Span
from shoal.wire.codec import choose_codec
from shoal.wire.fields import NextHop
from shoal.wire.messages import Open, Refused, Reroute, Step, shorten

DIAL_NEXT_S = 5.0
DRAIN_S = 30.0
"""How long a node that was asked to stop lets the sessions or requests that it has come to their end."""
GOODBYE_WITHIN_S = 5.0
LEAVING_RETRY_S = 60.0
"""When to come back to a node that is leaving: by then it has gone, or somebody has started it again."""
PAUSED_RETRY_S = 30.0
"""The same for a node that has paused: at the earliest its machine is left alone by then."""

log = logging.getLogger(__name__)


class NextHopUnreachable(ChannelClosed):
    """The next hop cannot be reached: it is that one who is to be avoided, not this node."""

    def __init__(self, peer: str, error: ShoalError) -> None:
        super().__init__(error.message)
        self.peer = peer


@dataclass(frozen=True, slots=True)
class Service:
    """What a node serves, as far as a newcomer must fit it."""

    peer: PeerId
    digest: Digest
    span: Span
    numerics: Numerics
    draining: bool = False
    """Whether it lets nobody in any more."""
    paused: bool = False
    """Whether it lets nobody in for now."""
    adapters: frozenset[AdapterDigest] = frozenset()
    """Those that sessions may have."""


class DrainableServer(Protocol):
    """What serves at a node, as far as it is asked to stop."""

    draining: bool

    async def wait_idle(self) -> None:
        """Wait until nothing that it was asked for is here."""
        ...


async def drain(server: DrainableServer, member: Member, timeout_s: float) -> bool:
    """Take no new sessions, tell the swarm, and let what is here come to its end.

    Returns:
        Whether all of it did within ``timeout_s``.
    """
    server.draining = True
    with trio.move_on_after(GOODBYE_WITHIN_S):
        await member.leave()
    with trio.move_on_after(timeout_s):
        await server.wait_idle()
        return True
    return False


def check_neighbours(message: Open | Reroute, peer: PeerId) -> None:
    """Refuse a hop that is its own neighbour: it would send itself steps for ever, or wait for its own.

    Raises:
        NotAllowed: it is.
    """
    if peer in (message.previous, message.next.peer if message.next else None):
        raise NotAllowed("a hop cannot be its own neighbour in a route")


def check_open(message: Open, service: Service) -> None:
    """Refuse a session that this node does not serve.

    Raises:
        Busy: the node is leaving, or has paused.
        DigestMismatch: it serves another model.
        NotAllowed: it computes in another format or by other numerics, serves other blocks, has not the
            adapter, or would be its own neighbour.
    """
    if service.draining:
        raise Busy("this node is leaving", retry_after_s=LEAVING_RETRY_S)
    if service.paused:
        raise Busy("this node has paused: its machine is in use", retry_after_s=PAUSED_RETRY_S)
    check_neighbours(message, service.peer)
    if message.digest != service.digest:
        raise DigestMismatch(
            f"this node serves {service.digest[:23]}…, not {message.digest[:23]}…: "
            "another model, or another version of it"
        )
    if message.format != service.numerics.format:
        raise NotAllowed(f"this node computes in {service.numerics.format}, not {message.format}")
    check_numerics(message.numerics, service.numerics)
    if message.adapter and message.adapter not in service.adapters:
        raise NotAllowed(f"this node does not serve the adapter {message.adapter[:23]}…")
    if message.start < service.span.start or message.end > service.span.end:
        raise NotAllowed(
            f"this node serves blocks {service.span}, {message.start}:{message.end} is not inside of them"
        )


def check_numerics(asked: str, ours: Numerics) -> None:
    """Refuse a session of other numerics: its hops would give other bits for the same rows.

    Raises:
        NotAllowed: it is one.
    """
    try:
        fits = Numerics.parse(asked).admits(ours)
    except ValueError:
        fits = False  # of a later version than ours, or nonsense
    if not fits:
        raise NotAllowed(
            f"this node computes by the numerics {ours}, not {asked}: a session has one",
            check="compare the numerics of the nodes in shoal peers --json: version, format, KV and bits",
            next_command="shoal peers --json",
        )


def refusal(session: bytes, error: ShoalError, tokens_free: int) -> Refused:
    """What a client is told that is not let in because of ``error``."""
    retry_after_s = error.retry_after_s if isinstance(error, Busy) else 1.0
    gone = error.peer if isinstance(error, NextHopUnreachable) else None
    return Refused(session, error.code, shorten(error.message), retry_after_s, tokens_free, gone)


async def reach_next(channels: ChannelPool, onward: NextHop, client: PeerId) -> Channel:
    """A channel to the hop that a client wants this one to send to.

    Raises:
        NextHopUnreachable: it cannot be reached, or may not be, or another machine has its identity.
    """
    try:
        channel = await channels.get(onward.address(), deadline_s=DIAL_NEXT_S, asked_by=client)
        if onward.noise_key and channel.noise_key != onward.noise_key:
            raise NotAllowed(f"the channel to {onward.peer} does not end in the machine that it has shown")
        return channel
    except (ChannelClosed, NotAllowed) as error:
        raise NextHopUnreachable(onward.peer, error) from error


class Admission:
    """Opens sessions, or refuses them.

    Args:
        measured: told of each step that a session computes, with its blocks, on the engine's thread.
        wire: the codec that sessions are asked to have; with ``auto`` by the way onward.
        credits: by which some are let in before others; ``None``: all are alike.
        payments: what asks for payment; ``None``: nothing is asked.
    """

    def __init__(
        self,
        sessions: Sessions,
        channels: ChannelPool,
        load: LoadMeter,
        measured: Callable[[Engine, Span, Step, StepOutput], None],
        wire: Codec | Literal["auto"],
        credits: CreditDesk | None = None,
        payments: PaymentDesk | None = None,
    ) -> None:
        self._payments = payments
        self._credits = credits
        self._sessions = sessions
        self._channels = channels
        self._load = load
        self._measured = measured
        self._wire: Codec | Literal["auto"] = wire
        self._room = ResendBudget()

    def begin(self, channel: Channel, message: Open, service: Service, engine: Engine) -> Opening | None:
        """Note a session that is to be opened, at once: what comes right behind may close it.

        Returns:
            What :meth:`open` is to open; ``None`` where it was refused.
        """
        try:
            check_open(message, service)
            if self._credits is not None:
                room = (self._sessions.free(engine), engine.tokens)
                self._credits.check(channel, message, self._sessions.places, room)
            # Taken note of before the first await: a second Open of the same id finds it.
            return self._sessions.begin(SessionId(message.session), channel, engine, message.tokens)
        except ShoalError as error:
            self._refuse(channel, message, error, engine)
            return None

    async def open(self, channel: Channel, message: Open, opening: Opening, engine: Engine) -> Hop | None:
        """Open a session on ``engine``, and dial its next hop.

        Returns:
            The session, which its caller must run and forget; ``None`` where it was refused or closed.
        """
        try:
            hop = await self._open(channel, message, opening, engine)
        except ShoalError as error:
            self._refuse(channel, message, error, engine)
            return None
        except Exception:
            # A defect of ours that one stranger's session has met must not end everybody else's.
            log.exception("a session could not be opened", extra=about(channel.peer, message.session))
            defect = StepFailed("a defect in this node; its log says more")
            self._refuse(channel, message, defect, engine)
            return None
        if hop is not None and opening.scope.cancel_called:  # at the very moment when it was open
            self._sessions.forget(hop)
            hop = None
        if opening.pushed_out:
            self._refuse(channel, message, Busy("others here want the session's place"), engine)
        return hop

    def codec(self, hop: Hop) -> Codec:
        """What the way onward from ``hop`` asks of its session."""
        if self._wire != "auto":
            return self._wire
        onward, engine = hop.next or hop.client, hop.engine
        return choose_codec(engine.format, onward.bytes_s, engine.width, self._load.step_ms / 1e3)

    async def _open(self, channel: Channel, message: Open, opening: Opening, engine: Engine) -> Hop | None:
        try:
            with opening.scope:
                return await self._make_hop(channel, message, opening.session, engine)
        finally:
            self._sessions.began(opening)
        return None  # cancelled: the client has closed it, or others want its place

    async def _make_hop(self, channel: Channel, message: Open, session: SessionId, engine: Engine) -> Hop:
        span = Span(message.start, message.end)
        payment = await self._payments.admit(channel, message) if self._payments is not None else None
        self._sessions.use(engine)  # before anything is waited for: a node that moves closes what is unused
        found = self._sessions.take_kept(engine, message)
        try:
            if found is not None:
                engine.take_up(session, found.cache.state)
            else:
                await engine.open(session, span, AdapterDigest(message.adapter) if message.adapter else None)
        except BaseException:
            if found is not None:
                engine.give_up(found.cache.state)  # nobody else knows of it any more
            self._sessions.unuse(engine)
            raise
        try:
            onward = None
            if message.next is not None:
                onward = await reach_next(self._channels, message.next, channel.peer)
            measured: Callable[[Step, StepOutput], None] = partial(self._measured, engine, span)
            if self._credits is not None:
                measured = self._credits.metered(channel, message, measured)
        except BaseException:
            engine.close(session)
            self._sessions.unuse(engine)
            raise
        hop = Hop(
            opened=message,
            client=channel,
            next=onward,
            engine=engine,
            measured=measured,
            room=self._room,
            grow=self._sessions.grow,
            found=found,
            failed=self._load.note_failure,
            payment=payment,
        )
        self._sessions.add(hop)
        return hop

    def _refuse(self, channel: Channel, message: Open, error: ShoalError, engine: Engine) -> None:
        self._load.note_refusal(error)
        log.info("refused a session: %s", error.message, extra=about(channel.peer, message.session))
        with suppress(ChannelClosed):  # the client is gone, or does not read
            channel.reply(refusal(message.session, error, self._sessions.offered(engine)))

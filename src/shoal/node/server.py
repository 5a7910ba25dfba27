"""Takes messages from every channel and gives each to its session.

A peer that breaks the protocol loses its channel. A peer that asks for what is not there gets a typed
refusal. Neither touches anybody else's session.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Literal

import msgspec
import trio

from shoal.errors import ChannelClosed, UnknownSession
from shoal.executor.engine import Engine, StepOutput
from shoal.net.channel import Channel
from shoal.net.moving.mover import Where
from shoal.net.network import Network
from shoal.net.pool import ChannelPool
from shoal.node.adapters.training import TrainingDesk, TrainingService
from shoal.node.admission import Admission, Service
from shoal.node.audits.prove import ProofDesk
from shoal.node.audits.reveal import RevealDesk
from shoal.node.decoding.at_once import run_at_once
from shoal.node.handlers import Handlers
from shoal.node.hop import Hop
from shoal.node.load import LoadMeter
from shoal.node.owner.handover import HeldSession
from shoal.node.paying.credit_desk import CreditDesk
from shoal.node.paying.payment import PaymentDesk
from shoal.node.receipts import ReceiptDesk
from shoal.node.rerouting import NOT_YOURS, Rerouting
from shoal.node.sessions import Opening, Sessions
from shoal.node.speed import Speed
from shoal.node.tracing.turns import TurnDesk
from shoal.tasks import ends_alone
from shoal.trust.receipt import CounterSign
from shoal.types import AdapterDigest, Codec, Digest, PeerId, SessionId, Span
from shoal.wire.cache_names import KeepCache
from shoal.wire.messages import (
    Close,
    Failed,
    Located,
    Message,
    Open,
    Opened,
    Receipts,
    Refused,
    Rerouted,
    Revealed,
    Step,
)
from shoal.wire.proofs import Proved
from shoal.wire.versions import known_codec, knows_codec

EXPIRE_EVERY_S = 15.0
"""What is kept for later sessions is given up so much too late at the most."""

log = logging.getLogger(__name__)


class SpanServer:
    """Serves one span of one model. ``run`` must be running."""

    def __init__(
        self,
        network: Network,
        engine: Engine,
        *,
        digest: Digest,
        span: Span,
        speed: Speed,
        max_sessions: int,
        wire: Codec | Literal["auto"] = "auto",
        where: Where = lambda _: None,
        adapters: Sequence[AdapterDigest] = (),
        train_tokens: int = 0,
        countersign: CounterSign = lambda receipt: b"",
        credits: CreditDesk | None = None,
        payments: PaymentDesk | None = None,
    ) -> None:
        """
        Args:
            credits: by which some are let in before others; run with the server.
            payments: what asks for payment; run with the server.
            train_tokens: of the longest sequence that clients may train here; 0: they may train none.
            countersign: receipts, by the delegate of a node that has staked.
        """
        self.digest = digest
        self._adapters = frozenset(adapters)
        self.span = span
        self.engine = engine
        self.draining = False
        """Set to refuse new sessions while those there are come to their end."""
        self.paused = False
        """Set to refuse new sessions for a while."""
        self._speed = speed
        self._peer = network.peer
        self.load = LoadMeter(self._peer, speed.step_s)
        self._sessions = mine = Sessions(max_sessions, unused=self._unused)
        self.handlers = Handlers()
        """What handles which kind of message; whatever else a node serves registers here."""
        self.channels = ChannelPool(
            network,
            self.handlers.handle,
            mine.lost,
            known=lambda peer: mine.knows(peer) or self._training.knows(peer),
            held=lambda channel: mine.holds(channel) or self._training.holds(channel),
            where=where,
            at_once=self._at_once,
        )
        self._admission = Admission(mine, self.channels, self.load, self._measured, wire, credits, payments)
        self._rerouting = Rerouting(mine, self.channels, self.load, self._peer, self._spawn)
        self._receipts = ReceiptDesk(mine, network.sign, network.peer, self._spawn, countersign)
        self._reveals = RevealDesk(mine, self._spawn)
        self._proofs = ProofDesk(mine, self._spawn)
        self._train_tokens = train_tokens
        self._training = TrainingDesk(self._trained, self._spawn)
        self.credits = credits
        """Who is served first; ``None``: all are alike."""
        self.payments = payments
        """What asks for payment."""
        self._nursery: trio.Nursery | None = None
        self._register()

    def _register(self) -> None:
        self.handlers.register(Step, self._step)
        self.handlers.register(Open, self._open)
        self._rerouting.register(self.handlers)
        self._receipts.register(self.handlers)
        self._reveals.register(self.handlers)
        self._proofs.register(self.handlers)
        self._training.register(self.handlers)
        TurnDesk(self._sessions).register(self.handlers)
        if self.credits is not None:
            self.credits.register(self.handlers)
        if self.payments is not None:
            self.payments.register(self.handlers)
        self.handlers.register(Close, self._close)
        self.handlers.register(KeepCache, self._keep)
        for answer in (Failed, Opened, Refused, Rerouted, Located, Receipts, Revealed, Proved):
            self.handlers.register(answer, _ignore)

    @property
    def sessions(self) -> int:
        return len(self._sessions)

    @property
    def kept_caches(self) -> int:
        """Sessions' KV that is kept for the next turn of a conversation."""
        return len(self._sessions.kept)

    @property
    def unheld_tokens(self) -> int:
        """Tokens of KV that no session holds: what is kept is among them."""
        return self._sessions.free(self.engine)

    def has_client(self, peer: PeerId) -> bool:
        """Whether a session here is this peer's."""
        return any(hop.client.peer == peer for hop in self._sessions)

    @property
    def trains(self) -> bool:
        """Whether clients may train adapters here."""
        return not self._trained().off

    def _trained(self) -> TrainingService:
        off = self.engine.capabilities.untrainable
        if not self._train_tokens:
            off = "it was not started to: --train on"
        elif not self.admits:
            off = "it is leaving, or its machine is in use"
        return TrainingService(self.digest, self.span, self.engine, self._train_tokens, off)

    @property
    def admits(self) -> bool:
        """Whether it takes new sessions."""
        return not (self.draining or self.paused)

    @property
    def share(self) -> float:
        """Share of the time in which it computes, in (0, 1]."""
        return self.engine.share

    @share.setter
    def share(self, share: float) -> None:
        # Where the node has moved, sessions are still open on the span that it has left.
        for engine in {self.engine, *(hop.engine for hop in self._sessions)}:
            engine.share = share

    @property
    def tokens_free(self) -> int:
        """Tokens of KV that a newcomer would be let have: those of sessions that nobody uses among them."""
        return self._sessions.offered(self.engine)

    @property
    def awaited(self) -> int:
        """Sessions in use that somebody waits for."""
        return self._sessions.awaited(trio.current_time())

    @property
    def waiting(self) -> int:
        """Steps of all sessions that are here and have not been sent on."""
        return sum(hop.waiting for hop in self._sessions)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve until cancelled."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            for desk in (self.credits, self.payments):
                if desk is not None:
                    await nursery.start(desk.run)
            await nursery.start(partial(self.channels.run, accept=True))
            task_status.started()
            while True:
                await trio.sleep(EXPIRE_EVERY_S)
                self._sessions.kept.expire(trio.current_time())

    def take_over(self, engine: Engine, span: Span, speed: Speed) -> None:
        """Open sessions on another span from now on. Those that are open stay where they are."""
        engine.share = self.engine.share
        self.engine, self.span, self._speed = engine, span, speed
        self.load.reset(speed.step_s)

    def held(self) -> list[HeldSession]:
        """The open sessions, as others would have to take them."""
        return [_held(hop) for hop in self._sessions]

    def hand_over(self, session: SessionId, why: str) -> None:
        """End a session here, so that its client goes on with it elsewhere."""
        self._sessions.hand_over(session, why)

    async def wait_unused(self, engine: Engine) -> None:
        """Wait until no session is open on ``engine``."""
        await self._sessions.wait_unused(engine)

    async def wait_idle(self) -> None:
        """Wait until no session is open."""
        await self._sessions.wait_idle()

    def _spawn(self, task: Callable[[], Awaitable[None]]) -> None:
        if self._nursery is not None:
            self._nursery.start_soon(_alone, task)

    async def _open(self, channel: Channel, message: Open, payload: bytes) -> None:
        service = Service(
            self._peer,
            self.digest,
            self.span,
            self.engine.numerics,
            self.draining,
            self.paused,
            self._adapters,
        )
        opening = self._admission.begin(channel, message, service, self.engine)
        if opening is not None:
            # Dialling the next hop takes a while: other sessions of this channel must not wait.
            self._spawn(partial(self._run_session, channel, message, opening))

    async def _run_session(self, channel: Channel, message: Open, opening: Opening) -> None:
        try:
            hop = await self._admission.open(channel, message, opening, self.engine)
            if hop is not None:
                await self._run_hop(channel, message, hop)
        finally:
            if self.credits is not None:
                self.credits.ended(message.session)
            if self.payments is not None:
                self.payments.ended(message.session)

    async def _run_hop(self, channel: Channel, message: Open, hop: Hop) -> None:
        try:
            with suppress(ChannelClosed):  # the client is gone
                codec = known_codec(self._admission.codec(hop), channel.version)
                rolls_back = hop.engine.capabilities.roll_back
                keeps = self.credits is not None
                opened = Opened(
                    message.session, self.tokens_free, codec, rolls_back, hop.opening, credits=keeps
                )
                # A cache in a codec that the client does not know is no use to it: it begins anew.
                if (found := hop.found) is not None and knows_codec(found.cache.codec, channel.version):
                    opened = msgspec.structs.replace(opened, held=found.tokens, held_codec=found.cache.codec)
                await channel.send(opened)
                await hop.run()
        finally:
            # However it ends, its KV is free for others.
            self._sessions.forget(hop)

    async def _step(self, channel: Channel, message: Step, payload: bytes) -> None:
        hop = self._sessions.get(SessionId(message.session))
        if hop is None or not hop.takes_from(channel):
            error = UnknownSession(NOT_YOURS)
            channel.reply(Failed(message.session, message.number, 0, error.code, error.message))
        else:
            hop.came_over = channel.number
            hop.take(message, payload)

    def _at_once(self, channel: Channel, data: bytes) -> bool:
        return run_at_once(self._sessions, self.engine, channel, data)

    async def _close(self, channel: Channel, message: Close, payload: bytes) -> None:
        self._sessions.close(channel, SessionId(message.session))

    async def _keep(self, channel: Channel, message: KeepCache, payload: bytes) -> None:
        hop = self._sessions.get(SessionId(message.session))
        if hop is not None and hop.client is channel:  # else it has ended meanwhile, which its client hears
            hop.keep(message.names)

    def _unused(self, engine: Engine) -> None:
        if engine is self.engine:
            self.load.reset(self._speed.step_s)

    def _measured(self, engine: Engine, span: Span, step: Step, result: StepOutput) -> None:
        """Note what a step took; on the engine's thread."""
        self.load.note_step(span, step, result, announced=engine is self.engine)


def _held(hop: Hop) -> HeldSession:
    opened = hop.opened
    beside = (opened.previous, opened.next.peer if opened.next else None)
    return HeldSession(
        hop.session,
        Span(opened.start, opened.end),
        opened.tokens,
        frozenset(PeerId(peer) for peer in beside if peer),
    )


async def _alone(task: Callable[[], Awaitable[None]]) -> None:
    with ends_alone(log, "what a client has asked for"):
        await task()


async def _ignore(channel: Channel, message: Message, payload: bytes) -> None:
    """An answer to what a client asks; a node asks nothing."""

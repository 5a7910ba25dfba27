"""Takes messages from every channel and gives each to its session.

A peer that breaks the protocol loses its channel. A peer that asks for what is not there gets a typed
refusal. Neither touches anybody else's session.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from typing import Literal

import trio

from shoal.errors import (
    Busy,
    ChannelClosed,
    DigestMismatch,
    NotAllowed,
    RemoteProtocolError,
    ShoalError,
    StepFailed,
    UnknownSession,
)
from shoal.executor.engine import Engine, Forwarded
from shoal.metrics.logs import about
from shoal.metrics.meters import Metrics
from shoal.metrics.trace import HopTrace, Trace, hop_step
from shoal.net.channel import Channel
from shoal.net.network import Network
from shoal.net.pool import ChannelPool
from shoal.node.hop import Hop
from shoal.node.resend_buffer import KeptRoom
from shoal.node.sessions import Opening, Sessions
from shoal.node.speed import Speed
from shoal.types import Codec, Digest, PeerId, SessionId, Span
from shoal.wire.codec import CodecChooser
from shoal.wire.messages import (
    Close,
    Failed,
    Locate,
    Located,
    Message,
    NextHop,
    Open,
    Opened,
    Refused,
    Reroute,
    Rerouted,
    Step,
    shorten,
)

DIAL_NEXT_S = 5.0
NOT_YOURS = "no such session here, or not of this peer"
"""The same words for both: a stranger learns nothing."""

log = logging.getLogger(__name__)


class _NextGone(ChannelClosed):
    """The next hop cannot be reached: it is that one who is to be avoided, not this node."""

    def __init__(self, peer: str, error: ShoalError) -> None:
        super().__init__(error.message)
        self.peer = peer


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
    ) -> None:
        self.digest = digest
        self.span = span
        self.engine = engine
        self.draining = False
        """Set to refuse new sessions while those there are come to their end."""
        self.step_ms = 0.0
        """Smoothed time of a decode step through the span; while no session is open, that of one alone."""
        self.wait_ms = 0.0
        """Smoothed time that a decode step waits for its turn."""
        self._speed = speed
        self._forget_load()
        self._sessions = mine = Sessions(max_sessions)
        self.channels = ChannelPool(network, self._handle, mine.lost, known=mine.knows, held=mine.holds)
        self._peer = network.peer
        self.metrics = Metrics()
        self.trace = Trace()
        """Steps as this hop saw them."""
        self.steps = 0
        self._wire: Codec | Literal["auto"] = wire
        self._room = KeptRoom()
        self._nursery: trio.Nursery | None = None

    @property
    def sessions(self) -> int:
        return len(self._sessions)

    @property
    def tokens_free(self) -> int:
        """Tokens of KV that a newcomer would be let have: those of sessions that nobody uses among them."""
        return self._sessions.offered(self.engine)

    @property
    def waiting(self) -> int:
        """Steps of all sessions that are here and have not been sent on."""
        return sum(hop.waiting for hop in self._sessions)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve until cancelled."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            await nursery.start(partial(self.channels.run, accept=True))
            task_status.started()

    def take_over(self, engine: Engine, span: Span, speed: Speed) -> None:
        """Open sessions on another span from now on. Those that are open stay where they are."""
        self.engine, self.span, self._speed = engine, span, speed
        self._forget_load()

    async def wait_unused(self, engine: Engine) -> None:
        """Wait until no session is open on ``engine``."""
        await self._sessions.wait_unused(engine)

    async def wait_idle(self) -> None:
        """Wait until no session is open."""
        await self._sessions.wait_idle()

    async def _handle(self, channel: Channel, message: Message, payload: bytes) -> None:
        match message:
            case Step():
                await self._step(channel, message, payload)
            case Open():
                await self._begin(channel, message)
            case Reroute():
                self._spawn(partial(self._reroute, channel, message))
            case Locate():
                await self._locate(channel, SessionId(message.session))
            case Close():
                self._sessions.close(channel, SessionId(message.session))
            case Failed() | Opened() | Refused() | Rerouted() | Located():
                pass  # answers to what a client asks; a node asks nothing
            case _:
                raise RemoteProtocolError(f"a {type(message).__name__} where none is expected")

    def _spawn(self, task: Callable[[], Awaitable[None]]) -> None:
        if self._nursery is not None:
            self._nursery.start_soon(task)

    async def _begin(self, channel: Channel, message: Open) -> None:
        """Note a session that is to be opened, at once: what comes right behind may close it."""
        try:
            self._check(message)
            opening = self._sessions.begin(SessionId(message.session), channel, self.engine, message.tokens)
        except ShoalError as error:
            await self._refuse(channel, message, error)
            return
        # Dialling the next hop takes a while: other sessions of this channel must not wait.
        self._spawn(partial(self._open, channel, message, opening))

    async def _open(self, channel: Channel, message: Open, opening: Opening) -> None:
        hop = None
        try:
            try:
                with opening.scope:
                    hop = await self._admit(channel, message, opening.session)
            finally:
                self._sessions.began(opening)
        except ShoalError as error:
            await self._refuse(channel, message, error)
            return
        except Exception:
            # A defect of ours that one stranger's session has met must not end everybody else's.
            log.exception("a session could not be opened", extra=about(channel.peer, message.session))
            await self._refuse(channel, message, StepFailed("a defect in this node; its log says more"))
            return
        if opening.pushed_out:
            await self._refuse(channel, message, Busy("others here want the session's place"))
        if hop is None:
            return  # the client has closed it before it was open
        if opening.scope.cancel_called:  # or at the moment when it was
            self._forget(hop)
            return
        try:
            with suppress(ChannelClosed):  # the client is gone
                await channel.send(Opened(message.session, self.tokens_free))
                await hop.run()
        finally:
            self._forget(hop)

    async def _admit(self, channel: Channel, message: Open, session: SessionId) -> Hop:
        engine, span = self.engine, str(self.span)
        self._sessions.use(engine)
        try:
            await engine.open(session, Span(message.start, message.end))
        except BaseException:
            self._sessions.unuse(engine)
            raise
        try:
            onward = None
            if message.next is not None:
                onward = await self._reach(message.next, channel.peer)
        except BaseException:
            engine.close(session)
            self._sessions.unuse(engine)
            raise
        hop = Hop(
            message,
            channel,
            onward,
            engine,
            CodecChooser(engine.format, self._wire),
            partial(self._measured, engine, span),
            self._room,
            self._sessions.grow,
            self._count_failure,
        )
        self._sessions.add(hop)
        return hop

    def _check_neighbours(self, message: Open | Reroute) -> None:
        """A hop that is its own neighbour would send itself steps for ever, or wait for its own."""
        if self._peer in (message.previous, message.next.peer if message.next else None):
            raise NotAllowed("a hop cannot be its own neighbour in a route")

    async def _reach(self, onward: NextHop, client: PeerId) -> Channel:
        try:
            return await self.channels.get(onward.address(), deadline_s=DIAL_NEXT_S, asked_by=client)
        except (ChannelClosed, NotAllowed) as error:
            raise _NextGone(onward.peer, error) from error

    def _check(self, message: Open) -> None:
        if self.draining:
            raise Busy("this node is leaving", retry_after_s=60.0)
        self._check_neighbours(message)
        if message.digest != self.digest:
            raise DigestMismatch(
                f"this node serves {self.digest[:23]}…, not {message.digest[:23]}…: "
                "another model, or another version of it"
            )
        if message.format != self.engine.format:
            raise NotAllowed(f"this node computes in {self.engine.format}, not {message.format}")
        if message.start < self.span.start or message.end > self.span.end:
            raise NotAllowed(
                f"this node serves blocks {self.span}, {message.start}:{message.end} is not inside of them"
            )

    async def _refuse(self, channel: Channel, message: Open, error: ShoalError) -> None:
        self.metrics.refusals.labels(error.code).inc()
        log.info("refused a session: %s", error.message, extra=about(channel.peer, message.session))
        retry_after_s = error.retry_after_s if isinstance(error, Busy) else 1.0
        with suppress(ChannelClosed, RemoteProtocolError):  # the client is gone, or does not read
            await channel.reply(
                Refused(
                    message.session,
                    error.code,
                    shorten(error.message),
                    retry_after_s,
                    self.tokens_free,
                    error.peer if isinstance(error, _NextGone) else None,
                )
            )

    async def _step(self, channel: Channel, message: Step, payload: bytes) -> None:
        hop = self._sessions.get(SessionId(message.session))
        if hop is None or channel.peer != hop.sender:
            error = UnknownSession(NOT_YOURS)
            await channel.reply(Failed(message.session, message.number, 0, error.code, error.message))
        else:
            hop.take(message, payload)

    async def _reroute(self, channel: Channel, message: Reroute) -> None:
        """Only the channel that opened a session may change its neighbours."""
        session = SessionId(message.session)
        hop = self._sessions.get(session)
        if hop is None or hop.client is not channel:
            with suppress(ChannelClosed, RemoteProtocolError):  # the client is gone, or does not read
                await channel.reply(Failed(session, None, message.hop, UnknownSession.code, NOT_YOURS))
            return
        kept = False
        # What is refused here is not kept either, and the client replays.
        with suppress(ChannelClosed, NotAllowed, Busy), hop.changing():
            self._check_neighbours(message)
            onward = None
            if message.next is not None:
                onward = await self._reach(message.next, channel.peer)
            kept = self._sessions.get(session) is hop and hop.reroute(message, onward)
            self._sessions.expect(hop.sender)
            self.metrics.reroutes.labels("neighbour" if message.resend is None else "resend").inc()
        with suppress(ChannelClosed, RemoteProtocolError):
            await channel.reply(Rerouted(session, kept))

    async def _locate(self, channel: Channel, session: SessionId) -> None:
        hop = self._sessions.get(session)
        if hop is None or hop.client is not channel:
            await channel.reply(Failed(session, None, 0, UnknownSession.code, NOT_YOURS))
        else:
            await channel.reply(hop.located())

    def _forget(self, hop: Hop) -> None:
        self._sessions.forget(hop)
        self._unload(hop.engine)

    def _unload(self, engine: Engine) -> None:
        if engine is self.engine and not self._sessions.uses(engine):
            self._forget_load()

    def _count_failure(self, error: ShoalError) -> None:
        self.metrics.failures.labels(error.code).inc()

    def _forget_load(self) -> None:
        """Nobody would come back to a node that was slow once, and find out that it no longer is."""
        self.step_ms, self.wait_ms = 1000 * self._speed.step_s, 0.0

    def _measured(self, engine: Engine, span: str, step: Step, done: Forwarded) -> None:
        """Note what a step took; on the engine's thread."""
        self.steps += 1
        self.metrics.step(step.tokens, done.compute_us, done.waiting_us)
        here = HopTrace(self._peer, span, done.compute_us / 1e3, done.waiting_us / 1e3)
        seen = hop_step(time.time(), step.session, step.number, step.position, step.tokens, here)
        self.trace.step(seen)
        if step.tokens == 1 and engine is self.engine:
            ms = done.compute_us / 1000
            self.step_ms = ms if not self.step_ms else 0.9 * self.step_ms + 0.1 * ms
            self.wait_ms = 0.9 * self.wait_ms + 0.1 * done.waiting_us / 1000

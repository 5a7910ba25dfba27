"""One session at one hop: steps come in, run in their order, and what comes out goes on.

A step is given to the engine by the task that received it, and sent on by the engine's own thread: between a
hop's socket and the next one's lie two changes of thread and no turn of the event loop.

A decode step in the ordinary form of a session that goes on does not even come here, but is run where it came
(:mod:`shoal.node.decoding.at_once`), and counted here afterwards.

A session outlives its neighbours. When the way to the next hop is gone, the client is told, and may put
another in its place (``Reroute``): what was sent so far has been kept, and is sent again.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial

import msgspec
import trio

from shoal.errors import (
    Busy,
    ChannelClosed,
    LocalProtocolError,
    OutdatedPeer,
    PaymentRequired,
    ShoalError,
    Superseded,
    UnknownSession,
)
from shoal.executor.engine import Engine, StepOutput
from shoal.executor.kernels.decode_steps import RanStep, RanTimes
from shoal.executor.pages import PAGE
from shoal.metrics import tracing
from shoal.metrics.tracing import TraceContext
from shoal.net.channel import Channel
from shoal.node.kept_caches import FoundCache, KeptCache, fitting
from shoal.node.paying.payment import SessionPayment
from shoal.node.resend_buffer import ResendBudget, ResendBuffer
from shoal.node.tracing.hop_turn import HopTurn
from shoal.trust.signing import Signing, WorkLog
from shoal.types import Numerics, PeerId, SessionId
from shoal.wire.cache_names import CacheName
from shoal.wire.hop_queue import HopQueue
from shoal.wire.messages import Failed, HopTime, Located, Open, Reroute, Step, decode, shorten
from shoal.wire.payload import hidden_states
from shoal.wire.versions import knows_codec

IDLE_S = 900.0
"""How long a session may be without a step, where nobody wants its room."""
UNPAID_S = 20.0
"""How long a session waits until what is owed for it is paid."""
TELL_AGAIN_S = 2.0
FIRST_STEP_S = 20.0
"""The same for one that has never had a step: before it gets one, the hops before this one compute theirs."""


@dataclass(eq=False)
class Hop:
    """A session as this node sees it.

    Steps are taken from ``previous`` (or the client) alone, and everything else from the client alone.
    """

    opened: Open
    client: Channel
    next: Channel | None
    """Where results go; ``None`` at the last hop, which answers the client."""
    engine: Engine
    measured: Callable[[Step, StepOutput], None]
    """Told of each step, once it is on its way, on the engine's thread."""
    room: ResendBudget
    """Where what was sent on is kept."""
    grow: Callable[[Hop, int], None]
    """Reserves KV for so many tokens in all; raises ``Busy``."""
    payment: SessionPayment | None = None
    """How it is paid for; ``None``: not at all."""
    failed: Callable[[ShoalError], None] = lambda _: None
    """Told of each step, and of a session, that came to nothing."""
    found: FoundCache | None = None
    """What it begins with of an earlier session's KV."""
    queue: HopQueue = field(init=False)
    """What waits here."""
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)

    def __post_init__(self) -> None:
        self.queue = HopQueue(self.opened, self.engine.width, trio.current_time())
        self._loop = trio.lowlevel.current_trio_token()
        self.held = 0
        """Tokens of KV that are reserved."""
        if self.found is not None:
            self.queue.take_up(self.found.tokens, self.found.cache.codec)
            self.held = self.found.cache.held
        self.names: tuple[CacheName, ...] = ()
        """By which its KV is to be kept once it is over."""
        self._kept = ResendBuffer(self.room, merge=self.engine.capabilities.batch)
        self._order = threading.Lock()  # what is sent again goes before what is computed meanwhile
        self._cut = False  # the client knows that the way onward is gone
        self._stalled = trio.Event()  # the way onward was full when a step came
        self.opening = os.urandom(16)
        """In all receipts of this session."""
        self.signing = Signing()
        # Of the session, not of the engine: hops of one without a promise of bits give others than ours.
        self._exact = Numerics.parse(self.opened.numerics).exact
        self._work = WorkLog()
        steps = self.engine.decode_steps
        self._seat = None if steps is None else steps.take_seat(self.session)
        self.trace: bytes | None = None
        """The trace that its steps are for, if any."""
        self._turn: HopTurn | None = None
        self.came_over = 0
        """The number of the channel that the last step came over."""
        self.loose = False
        """Whether some step said of its rows what no receipt does."""

    @property
    def session(self) -> SessionId:
        return SessionId(self.opened.session)

    @property
    def waiting(self) -> int:
        """Steps that are here and have not been sent on."""
        return self.queue.steps

    @property
    def sender(self) -> PeerId:
        """Who may send this session's steps."""
        return PeerId(self.opened.previous) if self.opened.previous else self.client.peer

    def takes_from(self, channel: Channel) -> bool:
        """Whether this session's steps may come over ``channel``."""
        key = self.opened.previous_key
        return channel.peer == self.sender and (not key or channel.noise_key == key)

    def take(self, step: Step, payload: bytes) -> None:
        """Hand a step to the engine, or tell the client why not."""
        self._hold()
        try:
            self.queue.accept(step)
        except ShoalError as error:
            # This step alone: the client sends it again from where the cache ends.
            self.fail(step.number, error)
            return
        self.loose = self.loose or bool(step.mutual or step.grids)
        if self.names:
            self.names = fitting(self.names, step.position)
        try:
            self.grow(self, step.position + step.tokens)
        except Busy as error:
            # What it holds would be held in vain: a step later there would be no room either.
            self.fail(None, error)
            self.end()
            return
        now = trio.current_time()
        self.scope.deadline = now + IDLE_S
        covered = self.payment is None or self.payment.reserve(step.tokens)
        if self.queue.put(step, payload, now, room=covered and not self.onward.full):
            self._submit(step, payload)
        else:
            if covered and self.payment is not None:
                self.payment.settle(step.tokens, done=False)  # it is reserved when its turn has come
            self._stalled.set()

    async def run(self) -> None:
        """Take part until the session is closed, or has not been used for long."""
        self.scope.deadline = trio.current_time() + FIRST_STEP_S
        with self.scope:
            while True:
                while self.queue.held:
                    await self.onward.wait_room()
                    # What was held may have been superseded meanwhile, by a step that found room.
                    if self.queue.held and await self._paid_for():
                        self._submit(*self.queue.next_held())
                # No await since nothing was found held: a step that comes now finds the new event.
                self._stalled = trio.Event()
                await self._stalled.wait()
        if self.scope.deadline <= trio.current_time():
            idle_s = trio.current_time() - self.queue.since
            self.names = ()
            self.fail(None, UnknownSession(f"no step for {idle_s:.0f} s: its room is for others"))

    async def _paid_for(self) -> bool:
        """Wait until the step that is held first is paid for; ``False`` where another may be first by now.

        A client that does not pay in time loses its session, and is told what it owes.
        """
        payment, until = self.payment, trio.current_time() + UNPAID_S
        while payment is not None and (step := self.queue.first_held) is not None:
            news = payment.news
            if payment.reserve(step.tokens):
                return True
            if trio.current_time() >= until:
                try:
                    payment.check(step.tokens)
                except PaymentRequired as error:
                    self.fail(None, error)
                    self.end()
                    await trio.lowlevel.checkpoint()
            payment.wait_told()
            with trio.move_on_after(TELL_AGAIN_S):
                await news.wait()
        return payment is None

    def reroute(self, message: Reroute, onward: Channel | None) -> bool:
        """Take other neighbours, and send the next one again what it is to have cached.

        Returns:
            Whether all of that had been kept.

        Raises:
            ChannelClosed: the next hop is gone again.
        """
        with self._order:
            self._hold()
            self.came_over = 0  # who has sent the steps may do so no longer
            self.opened = msgspec.structs.replace(
                self.opened,
                hop=message.hop,
                previous=message.previous,
                next=message.next,
                previous_key=message.previous_key,
            )
            self.next = onward
            self._cut = False
            if message.resend is None or onward is None:
                return True
            kept = self._kept.below(message.resend)
            for entry in kept or ():
                step = entry.refill(self.session, self.engine.width, message.fills - 1)
                onward.send_now(step, entry.payload)
            return kept is not None

    def lost_next(self, way: Channel, reason: str) -> None:
        """The way onward is gone: the client is told once, and the session waits for what it decides.

        Nothing happens if ``way`` is no longer the one: what a thread saw end may have been replaced since.
        """
        if self._cut or self.next is not way:
            return
        self._cut = True
        self._hold()
        gone = ChannelClosed(f"the way to the next hop {way.peer} is gone: {reason}")
        self.fail(None, gone, gone=way.peer)

    def keep(self, names: tuple[CacheName, ...]) -> None:
        """Keep its KV by these names once it is over, as far as it has got and can go back to them."""
        rolls_back = self.engine.capabilities.roll_back
        self.names = fitting(names, self.queue.length) if rolls_back else ()

    def kept(self) -> KeptCache | None:
        """What it leaves, and no longer has: nothing where it has no name, or a step is still here."""
        names, codec = self.names, self.queue.codec
        self.names = ()
        if not names or codec is None or not self.queue.idle:
            return None
        return KeptCache(
            engine=self.engine,
            state=self.engine.set_aside(self.session),
            opened=self.opened,
            client=self.client.peer,
            names=names,
            codec=codec,
            held=self.held,
            since=trio.current_time(),
        )

    def located(self) -> Located:
        """How far the session has come here."""
        return Located(self.session, self.queue.last_taken, self.queue.last_sent)

    def begin_turn(self, context: TraceContext | None) -> None:
        """The steps from here on are for this answer, if for any; the one before it is complete."""
        self.trace = context.trace if context is not None else None
        before, self._turn = self._turn, None
        # Measured only where somebody is to see it: that takes a lock and the time with each step.
        if context is not None and context.sampled and tracing.exports():
            self._turn = HopTurn(context)
        if before is not None:
            before.close(self.opened)

    def forget(self) -> None:
        """The session is over: what it kept goes."""
        self.begin_turn(None)
        with self._order:
            self._kept.clear()
            if self._seat is not None and self.engine.decode_steps is not None:
                self.engine.decode_steps.leave_seat(self._seat)
            self._seat = None

    def ran(self, ran: RanStep, times: RanTimes) -> None:
        """A step has run where it came, and is on its way: what :meth:`take` and the engine would have done.

        On the event loop, in the place of the thread that computes.
        """
        step = decode(ran.header, len(ran.payload))
        if not isinstance(step, Step):
            raise LocalProtocolError(f"a {type(step).__name__} has run")
        self.queue.accept(step)
        now = trio.current_time()
        self.scope.deadline = now + IDLE_S
        self.queue.put(step, b"", now, room=True)
        self.queue.done(step)
        self.queue.sent(step)
        if self.next is not None:
            self._kept.add(step, ran.codec, ran.payload)
        if self.payment is not None:
            self.payment.charge(step.tokens)
        output = StepOutput(ran.payload, times.compute_us, times.waiting_us)
        self.measured(step, output)
        if self._turn is not None:
            self._turn.note(step, output)
        self._work.note(step.position, ran.codec, 1, step.hidden.width, ran.came, 1, ran.payload)

    def prepare(self) -> None:
        """Let the next step run where it comes, if it can. As :meth:`ran`, after it."""
        length = self.queue.length
        # Not where others would have to go for it: that is for a step that has come to ask.
        if length < self.opened.tokens and self.engine.tokens_free >= PAGE:
            self.grow(self, length + 1)
        with self._order:
            self._prepare()

    def fail(self, number: int | None, error: ShoalError, gone: PeerId | None = None) -> None:
        """Tell the client; when it is gone too, its channel's end has freed this session already."""
        self.failed(error)
        hop, message = self.opened.hop, shorten(error.message)
        failed = Failed(self.opened.session, number, hop, error.code, message, gone)
        with suppress(ChannelClosed):
            self.client.send_now(failed)

    def end(self) -> None:
        """Stop, as the client wishes."""
        self.scope.cancel()

    def _hold(self) -> None:
        """The next step comes in the ordinary way."""
        if self._seat is not None and self.engine.decode_steps is not None:
            self.engine.decode_steps.hold(self._seat)

    def _prepare(self) -> None:
        """As :meth:`prepare`, on the thread that computes or in its place; under the lock of the order."""
        self._hold()
        way, codec = self.onward, self.queue.codec
        if self._seat is None or codec is None:
            return
        if not self.came_over or self._cut or not self.queue.idle or way.full:
            return
        if not knows_codec(codec, way.version):  # as a channel refuses to send it
            return
        if self.payment is not None and not self.payment.covers_next():
            return
        self.engine.prepare(
            self._seat,
            self.session,
            self.queue.length,
            channel=self.came_over,
            limit=self.opened.tokens,
            codec=codec,
            hop=self.opened.hop,
            number=way.next_number(),
        )

    @property
    def onward(self) -> Channel:
        """Where results go."""
        return self.next or self.client

    def _submit(self, step: Step, payload: bytes) -> None:
        hidden = step.hidden
        rows = step.tokens if self.next is not None else step.wanted
        done = partial(self._done, step, payload, rows)
        self.engine.submit(
            self.session,
            step.position,
            payload,
            hidden.codec,
            hidden.rows,
            rows,
            hidden.codec,
            done,
            step.sequence_length,
            step.mutual,
            step.grids,
        )

    def _done(self, step: Step, payload: bytes, rows: int, result: StepOutput | ShoalError) -> None:
        """Send the result on its way. On the engine's thread, so that nothing stands between.

        The event loop hears of failures alone: to wake it for each step would cost as much as the sending.
        """
        # First of all: whatever becomes of the result, the step no longer waits.
        self.queue.done(step)
        if self.payment is not None:
            self.payment.settle(step.tokens, done=not isinstance(result, ShoalError))
        # What was prepared for after the step before is out of date, if this one came at that moment.
        self._hold()
        if isinstance(result, Superseded):
            return  # by a step that is here: the client has given this one up
        with suppress(trio.RunFinishedError):  # the node has ended
            if isinstance(result, ShoalError):
                self._loop.run_sync_soon(self._failed, step, result)
            else:
                lost = self._send(step, rows, result)
                # Once the results of all that ran together are on their way: nobody waits for hashes.
                self.engine.after(partial(self._finish, step, payload, rows, result))
                if lost is not None:
                    self._loop.run_sync_soon(self.lost_next, *lost)

    def _send(self, step: Step, rows: int, result: StepOutput) -> tuple[Channel, str] | None:
        """Send on what came out. Returns the channel that turned out to be gone, and why."""
        codec = step.hidden.codec
        if (turn := self._turn) is not None:
            turn.note(step, result)  # before the client has it, and says that the answer is complete
        with self._order:
            if self.next is not None:
                # Before it is sent: if the next hop is gone at this moment, its successor gets it from here.
                self._kept.add(step, codec, result.payload)
            # Before it leaves: a client that has the result must not hear that the step is still here.
            self.queue.sent(step)
            if step.hops_left == 0:
                return None  # it has filled the last cache that it was to fill
            time = HopTime(self.opened.hop, result.compute_us, result.waiting_us)
            left = None if step.hops_left is None else step.hops_left - 1
            onward = msgspec.structs.replace(
                step,
                tensors=hidden_states(codec, rows, self.engine.width),
                times=(*step.times, time),
                hops_left=left,
            )
            way = self.onward
            try:
                # With the results of others that ran beside it: the next hop is woken once.
                if way.gather(onward, result.payload):
                    self.engine.after(way.flush)
            except (ChannelClosed, OutdatedPeer) as error:
                return way, error.message
        return None

    def _finish(self, step: Step, payload: bytes, rows: int, result: StepOutput) -> None:
        """Note what the step was and what became of it, and prepare for the next."""
        self.measured(step, result)
        # What only fills a cache is not sent on: where bits may differ from the first time, it says nothing.
        shown = rows if step.hops_left != 0 or self._exact else 0
        hidden = step.hidden
        self._work.note(
            step.position, hidden.codec, hidden.rows, hidden.width, payload, shown, result.payload
        )
        if step.tokens == 1:
            with self._order:
                self._prepare()

    async def worked(self, tokens: int) -> WorkLog:
        """What the first ``tokens`` positions were given and what became of them, once all steps are noted.

        Raises:
            NotAllowed: see :meth:`WorkLog.copy`.
        """
        return await self.engine.settled(partial(self._work.copy, tokens))

    def sent_rows(self, first: int, count: int) -> list[bytes] | None:
        """Rows that were sent to the next hop; ``None`` where they were not kept. From any thread."""
        return self._kept.rows(first, count, self.engine.width)

    def _failed(self, step: Step, error: ShoalError) -> None:
        self.queue.forget(step.position)
        self.fail(step.number, error)

"""A channel: messages between two peers over one pipe, whatever carries it.

A short message leaves at once, from the thread that has it, when nothing is before it; all others wait in the
:class:`~shoal.net.outbox.Outbox`, and the pump sends them fragment by fragment. A channel that hears nothing
for long is closed (:mod:`shoal.net.moving.liveness`), so that a frozen peer or a half-open connection is
noticed. It can :meth:`move <Channel.move>` to another pipe meanwhile, without a message lost:
:mod:`shoal.net.moving` finds the pipes.

Threads: everything runs on trio's loop, except ``send_now``, ``gather`` and ``flush``, which any thread may
call. One lock orders them:

- The outbox is touched under the lock alone, so messages leave in the order in which they were gathered.
- The pipe has one writer at a time. A thread writes under the lock, and only while the pump is not writing
  (``_pumping``). The pump sets it under the lock before it awaits the pipe, and clears it only when there is
  nothing more to write and the channel goes on; what threads bring meanwhile is queued, for the pump to take.
- Whoever queues something while the pump is not writing wakes it, so nothing is forgotten.
"""

from __future__ import annotations

import itertools
import logging
import secrets
import threading
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from functools import partial

import trio

from shoal.errors import ChannelClosed, ProtocolError, RemoteProtocolError
from shoal.net.link_speed import TIMED_BYTES, LinkSpeed
from shoal.net.moving.liveness import Liveness
from shoal.net.moving.moving_pipe import MovingPipe
from shoal.net.moving.resume import REVIVED, Revive, open_accepted
from shoal.net.network import Pipe
from shoal.net.outbox import CONTROL, Outbox, queue_of
from shoal.net.receive_budget import ReceiveBudget
from shoal.tasks import ends_alone
from shoal.types import CarrierName, PeerId, Way
from shoal.wire.framing import Assembler, Payload
from shoal.wire.messages import NEWEST_VERSION, Goodbye, Hello, Message, Ping, Pong, Resumed
from shoal.wire.versions import check_known, our_hello, spoken

HELLO_WITHIN_S = 5.0
SENT_WITHIN_S = 20.0
"""How long the peer may take nothing of what is sent to it."""
ENDED_WITHIN_S = 20.0
"""How long a message that has begun may make no progress."""

_NUMBERS = itertools.count(1)
log = logging.getLogger(__name__)

Handler = Callable[["Channel", Message, bytes], Awaitable[None]]
"""Takes one message that the peer sent. It must return soon: the next one waits for it."""
AtOnce = Callable[["Channel", bytes], bool]
"""Handles bytes that begin with a message, as they are. Returns whether it did; if not, nothing happened."""


class Channel:
    """Messages to and from ``peer``. ``run`` must be running for anything to move.

    Args:
        name: by which the peer names it when it is to go on over another pipe; empty: it never does.
        revive: of a pipe that was accepted: takes it for another channel, if that is what the peer wants.
    """

    def __init__(
        self,
        pipe: Pipe,
        inbound: ReceiveBudget | None = None,
        name: bytes = b"",
        revive: Revive | None = None,
    ) -> None:
        self._pipe = MovingPipe(pipe, moves=bool(name))
        self.name = name
        self.peers_name = b""
        """The peer's own name of it; empty until it has told one, and where it cannot move."""
        self.moves = 0
        """How often it has gone on over another pipe."""
        self.version = NEWEST_VERSION
        """Of the protocol, as both ends speak it; known once the peer has said hello."""
        self._revive = revive
        self._nursery: trio.Nursery | None = None
        self._opening = trio.CancelScope()  # the wait for the first message of an accepted pipe
        self.number = next(_NUMBERS)  # of this process's channels
        self._inbound = inbound or ReceiveBudget()
        self._stalled: float | None = None  # since when what the peer has begun has not grown
        self._loop = trio.lowlevel.current_trio_token()
        self._clock = trio.lowlevel.current_clock()
        self._lock = threading.Lock()  # over the outbox and who writes; held for microseconds
        self._outbox = Outbox()
        self._pumping = False  # whether the pump writes to the pipe: then no other thread may
        self._speed = LinkSpeed()
        self._work = trio.Event()
        self._room = trio.Event()
        self._closed = trio.Event()
        self._ready = trio.Event()
        self._reason = "the channel was closed"
        self._liveness = Liveness(trio.current_time())
        self.sent = 0
        """Bytes that were given to the pipe."""

    @property
    def peer(self) -> PeerId:
        return self._pipe.peer

    @property
    def carrier(self) -> CarrierName:
        return self._pipe.carrier

    @property
    def way(self) -> Way:
        return self._pipe.way

    @property
    def noise_key(self) -> bytes:
        """The peer's static key of the handshake: the same as long as the channel lasts."""
        return self._pipe.noise_key

    @property
    def host(self) -> str:
        """The address that the peer comes from; empty where the carrier has none."""
        return self._pipe.host

    @property
    def received(self) -> int:  # bytes that came over the pipe
        return self._pipe.received

    @property
    def away(self) -> bool:
        """Whether its pipe has ended, and it waits for another one."""
        return self._pipe.away

    @property
    def troubled(self) -> bool:
        """Whether another pipe is needed: this one has ended, or nothing comes over it any more."""
        return self._pipe.away or self._liveness.is_late(self._clock.current_time())

    @property
    def can_move(self) -> bool:
        """Whether it may go on over another pipe now."""
        return self._pipe.can_move and self._pipe.tail_whole and not self.closed

    @property
    def closed(self) -> bool:
        return self._closed.is_set()

    @property
    def silent_s(self) -> float:
        """How long nothing has been heard of the peer, in seconds; it is pinged every ``PING_EVERY_S``."""
        return self._liveness.silent_s(self._clock.current_time())

    @property
    def idle_s(self) -> float:
        """How long nothing but pings has come or gone, in seconds."""
        return self._liveness.idle_s(self._clock.current_time())

    @property
    def rtt_s(self) -> float | None:
        """The last round trip of a ping over this channel, in seconds; ``None`` before the first."""
        return self._speed.rtt_s

    @property
    def bytes_s(self) -> float | None:
        """Bytes a second that long messages of ours reached, smoothed; ``None`` until enough were timed."""
        return self._speed.bytes_s

    async def send(self, message: Message, payload: Payload = b"") -> None:
        """As :meth:`send_now`, but waits while the outbox is full; not for the arrival."""
        await self.wait_room()
        self.send_now(message, payload)

    def send_now(self, message: Message, payload: Payload = b"", queue: bytes | None = None) -> None:
        """Send, behind earlier messages of the session, from any thread: its caller keeps within a bound.

        Args:
            queue: as of :meth:`Outbox.gather`.

        Raises:
            ChannelClosed: the channel is closed; nothing was sent.
            OutdatedPeer: the peer's release does not know such a message; nothing was sent.
        """
        self._note_use(message)
        with self._lock:
            self._take_in(message, payload, queue)
            self._write()

    def reply(self, message: Message) -> None:
        """Answer what the peer asked, without waiting: a peer that does not read its answers is hung up on.

        Raises:
            ChannelClosed: the channel is closed, or is from now on, as ``CONTROL_LIMIT`` messages are
                waiting already; nothing was sent.
        """
        try:
            self.send_now(message, queue=CONTROL)
        except RemoteProtocolError as error:
            # Here, and not where the channel is read: many answers are given by tasks of their own.
            self.close(error.message)
            raise ChannelClosed(f"no channel to {self.peer}: {error.message}") from error

    def gather(self, message: Message, payload: Payload = b"") -> bool:
        """As :meth:`send_now`, but a short message waits for :meth:`flush`, so that several leave together.

        Returns:
            Whether the caller is to see to the flush, and soon: the message is the first of those gathered.
            A message that is sent meanwhile takes those gathered along, ahead of it.
        """
        if len(payload) >= TIMED_BYTES:
            self.send_now(message, payload)  # others would wait for it, and it gains nothing
            return False
        self._note_use(message)
        with self._lock:
            return self._take_in(message, payload) == 1

    def next_number(self) -> int:
        """Set the number of a message aside, for :meth:`send_fragments`."""
        return self._outbox.next_number()

    def send_fragments(self, fragments: Sequence[tuple[bytes, bytes]]) -> None:
        """As :meth:`send_now`, of short messages that are whole fragments already, each with its session."""
        self._liveness.used = self._clock.current_time()
        with self._lock:
            self._check_open()
            self._outbox.gather_fragments(fragments)
            self._write()

    def flush(self) -> None:
        """Send what is gathered, from any thread. On a channel that has closed meanwhile it is lost."""
        with suppress(ChannelClosed), self._lock:
            self._write()

    @property
    def queued_bytes(self) -> int:
        """Bytes that wait to be sent."""
        return self._outbox.queued_bytes

    @property
    def full(self) -> bool:
        """Whether :meth:`send` waits."""
        return self._outbox.full and not self.closed

    async def wait_room(self, session: bytes | None = None) -> None:
        """Wait until the channel is not full; of a session, until none of its messages waits to be sent."""
        await self._until(lambda: not (self.full or (session is not None and self._outbox.waits(session))))

    async def wait_sent(self) -> None:
        """Wait until all that was sent has been given to the pipe, or the channel has closed."""
        await self._until(lambda: not (self._pumping or self._outbox.queued or self._pipe.unsent))

    async def _until(self, is_so: Callable[[], bool]) -> None:
        while not is_so() and not self.closed:
            # One event for all who wait: to make another would leave those before with one that nobody sets.
            self._room = trio.Event() if self._room.is_set() else self._room
            await self._room.wait()

    async def wait_ready(self, deadline_s: float) -> None:
        """Wait until the peer has said hello. Raises ChannelClosed: it hung up, or said nothing in time."""
        with trio.move_on_after(deadline_s):
            await self._ready.wait()
        if self.closed or not self._ready.is_set():
            self.close("the peer did not answer" if not self.closed else self._reason)
            raise ChannelClosed(f"no channel to {self.peer}: {self._reason}")

    @property
    def ready(self) -> bool:
        """Whether the peer has said hello."""
        return self._ready.is_set()

    @property
    def reason(self) -> str:
        """Why the channel was closed."""
        return self._reason

    def close(self, reason: str = "the channel was closed") -> None:
        """Close from any task, at once. What is still queued is lost."""
        if not self.closed:
            self._reason = reason
            self._closed.set()
            # Whoever waits for one of these looks next at whether the channel is closed.
            self._ready.set()
            self._room.set()
            self._pipe.trouble.set()
            self._opening.cancel()

    async def wait_trouble(self) -> None:
        """Wait until the channel is :attr:`troubled`, or has closed."""
        if not self.troubled and not self.closed:
            self._pipe.trouble = trio.Event()
        await self._pipe.trouble.wait()

    def move(self, pipe: Pipe, answer: Resumed, ahead: bytes) -> bool:
        """Go on over another pipe, as :meth:`MovingPipe.move`; whether it does. The old one is closed."""
        return self._go_on(lambda: self._pipe.move(pipe, answer, ahead))

    def take_over(self, pipe: Pipe, heard: int) -> bool:
        """The same, as :meth:`MovingPipe.take_over`."""
        return self._go_on(lambda: self._pipe.take_over(pipe, heard))

    def _go_on(self, replace: Callable[[], Pipe | None]) -> bool:  # what the other end says to have decides
        if self._nursery is None or self.closed or not self._pipe.can_move or (old := replace()) is None:
            return False
        self._nursery.start_soon(old.aclose)
        self._speed = LinkSpeed()
        self._liveness.heard = trio.current_time()
        self.moves += 1
        self._work.set()
        return True

    async def run(self, handle: Handler, at_once: AtOnce | None = None) -> None:
        """Move messages until the channel closes, for whatever reason; then the pipe is closed too.

        A peer that breaks the protocol closes its own channel and nothing else. ``at_once`` is asked first.
        """
        if self._revive is not None and not await self._opens(self._revive):
            return
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                await self._guard(self._greet)  # before all else: tasks of a nursery begin in any order
                for task in (self._pump, self._watch, partial(self._receive, handle, at_once)):
                    nursery.start_soon(self._guard, task)
                await self._closed.wait()
                nursery.cancel_scope.cancel()
        finally:
            self._nursery = None
            self.close()
            self._inbound.note(self, 0)
            with self._lock:  # once a thread that is writing has done so; no other one begins
                self._pumping = True
            # Also when cancelled: the socket goes back, soon even if the peer does not read.
            with trio.move_on_after(2, shield=True):
                await self._pipe.aclose()

    async def _opens(self, revive: Revive) -> bool:
        """Read the first message of an accepted pipe; whether a channel begins with it."""
        why, taken = "an error of ours", False
        pipe = self._pipe.inner
        try:
            with ends_alone(log, f"a pipe of {self.peer}"), self._opening:
                why, opening = await open_accepted(pipe, revive, HELLO_WITHIN_S)
                self._pipe.put_back(opening)
                taken = why in ("", REVIVED)
        finally:
            if why:
                self.close(why)
            if not taken:
                with trio.move_on_after(2, shield=True):
                    await pipe.aclose()
        return not why

    async def _guard(self, task: Callable[[], Awaitable[None]]) -> None:
        with ends_alone(log, f"a channel of {self.peer}"):
            try:
                await task()
            except (ChannelClosed, ProtocolError) as error:
                self.close(error.message)
            return
        self.close("an error of ours")

    def _note_use(self, message: Message) -> None:
        if not isinstance(message, Ping | Pong):
            # Not under the lock: threads that note their use at once note the same time.
            self._liveness.used = self._clock.current_time()

    def _check_open(self) -> None:
        if self.closed:
            raise ChannelClosed(f"no channel to {self.peer}: {self._reason}")

    def _take_in(self, message: Message, payload: Payload, queue: bytes | None = None) -> int:
        """Gather a message, and a ping behind one that the link is timed by; under the lock.

        Returns:
            How many are gathered.
        """
        self._check_open()
        check_known(message, self.version)
        gathered = self._outbox.gather(message, payload, queue)
        if self._speed.may_time(len(payload)):
            nonce, before = secrets.randbits(62), self._outbox.queued_bytes
            self._speed.sent_behind(nonce, before + len(payload), self._clock.current_time())
            self._outbox.gather(Ping(nonce), queue=queue_of(message))
        return gathered

    def _write(self) -> None:
        """Give what is gathered to the pipe, or leave it to the pump; under the lock.

        Raises:
            ChannelClosed: the pipe broke. The channel is closed.
        """
        try:
            while not self._pumping and (record := self._outbox.record()):
                if not self._pipe.send_now(record):
                    break
                self._outbox.record_sent()
                self.sent += len(record)
        except ChannelClosed as error:
            # Any thread may be here, and events belong to the loop.
            self._on_loop(partial(self.close, error.message))
            raise
        # What could not leave keeps its place: behind what is queued, ahead of what is gathered next.
        self._outbox.queue_gathered()
        if not self._pumping and (self._outbox.queued or self._pipe.unsent):
            self._on_loop(lambda: self._work.set())  # noqa: PLW0108  it is another event by then

    def _on_loop(self, function: Callable[[], None]) -> None:
        """Have the loop call a function, from any thread."""
        with suppress(trio.RunFinishedError):  # the loop has ended, and the channel with it
            self._loop.run_sync_soon(function)

    def _next_fragment(self) -> bytes | None:
        """What the pump is to write next; ``None`` when there is nothing, and threads may write again."""
        with self._lock:
            fragment = self._outbox.next_fragment()
            if fragment is None and self._pipe.unsent:
                fragment = b""  # to write nothing writes what the system did not take at once
            # Under the lock of the look above: nothing can be queued between the two and wake nobody.
            self._pumping = fragment is not None
            self.sent += len(fragment or b"")
            return fragment

    async def _greet(self) -> None:
        self.send_now(our_hello(self.name))

    async def _pump(self) -> None:
        while True:
            await self._work.wait()
            # Anew before the outbox is looked at: what is queued after the last look wakes the pump again.
            self._work = trio.Event()
            while (fragment := self._next_fragment()) is not None:
                if not self._outbox.full:
                    self._room.set()
                with trio.move_on_after(SENT_WITHIN_S) as sending:
                    await self._pipe.send_all(fragment)
                if sending.cancelled_caught:
                    raise ChannelClosed(f"the peer has not read for {SENT_WITHIN_S:.0f} s")
            self._room.set()

    async def _receive(self, handle: Handler, at_once: AtOnce | None) -> None:
        assembler, held = Assembler(), 0
        while data := await self._pipe.receive_some():
            self._liveness.heard = trio.current_time()
            if at_once is not None and assembler.idle and self.ready and at_once(self, data):
                self._liveness.used = self._liveness.heard
                continue
            for message, payload in assembler.feed(data):
                await self._take(handle, message, payload)
            if assembler.held != held:
                held = assembler.held
                self._inbound.note(self, held)
                self._stalled = self._liveness.heard if held else None
        self.close("the peer hung up")

    async def _take(self, handle: Handler, message: Message, payload: bytes) -> None:
        if isinstance(message, Hello):
            self.version = spoken(message)
            self.peers_name = message.channel if self.name and len(message.channel) == len(self.name) else b""
            self._pipe.settle(can_move=bool(self.peers_name))
            self._ready.set()
        elif not self._ready.is_set():
            raise RemoteProtocolError(f"a {type(message).__name__} before the peer's hello")
        elif isinstance(message, Ping):
            self.send_now(Pong(message.nonce, self.received if self.peers_name else 0))
        elif isinstance(message, Goodbye):
            self._pipe.settle(can_move=False)
            self.close("the peer hung up")
        elif isinstance(message, Pong):
            if self.peers_name:
                self._pipe.acknowledge(message.received)
            self._speed.pong(message.nonce, self._liveness.heard)
        else:
            self._liveness.used = self._liveness.heard
            await handle(self, message, payload)

    async def _watch(self) -> None:
        with trio.move_on_after(HELLO_WITHIN_S):
            await self._ready.wait()
        if not self._ready.is_set():
            raise RemoteProtocolError(f"no hello within {HELLO_WITHIN_S:.0f} s")
        while True:
            asked, nonce = trio.current_time(), secrets.randbits(62)
            with self._lock:
                waits = self._outbox.waits(CONTROL)
            if not waits:  # else, behind a fragment on a thin link, one more would tell no more
                self._speed.pinged(nonce, asked)
                if not self.away:
                    self.send_now(Ping(nonce))
            every_s = self._liveness.ping_every_s(asked)
            for look in (1, 2):
                await trio.sleep(every_s / 2)
                now = trio.current_time()
                held_up_s = now - asked - look * every_s / 2  # our own loop's fault, not the peer's
                if self._liveness.is_late(now, held_up_s):
                    self._pipe.trouble.set()
                if self._liveness.is_dead(now, held_up_s):
                    raise ChannelClosed(f"nothing heard for {self.silent_s:.0f} s")
            if self._stalled is not None and trio.current_time() - self._stalled > ENDED_WITHIN_S:
                raise RemoteProtocolError(f"a message was begun and did not go on for {ENDED_WITHIN_S:.0f} s")

"""A channel: messages between two peers over one pipe, whatever carries it.

A short message leaves at once, from the thread that has it, when nothing is before it; short messages that
are there together leave together. All others are queued: each session has a queue of its own, and the pump
sends one fragment of each in turn, so that sending never waits for another session's long message. A channel
that hears nothing for ``DEAD_AFTER_S`` is closed, so that a frozen peer or a half-open connection is noticed.
"""

from __future__ import annotations

import itertools
import secrets
import threading
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial

import trio

from shoal.errors import ChannelClosed, RemoteProtocolError
from shoal.net.network import Pipe
from shoal.net.receive_budget import Inbound
from shoal.types import CarrierName, PeerId
from shoal.wire.framing import FRAGMENT, FRAGMENT_HEADER, Assembler, Outgoing, Payload
from shoal.wire.messages import AGENT, PROTOCOL_VERSION, Hello, Message, Ping, Pong

PING_EVERY_S = 1.0
DEAD_AFTER_S = 7.0
HELLO_WITHIN_S = 5.0
SENT_WITHIN_S = 20.0
ENDED_WITHIN_S = 20.0
"""How long a message that has begun may make no progress."""
QUEUED_LIMIT = 64 << 20
"""Bytes waiting to be sent; whoever sends more waits until the pipe has taken some."""

PROBE_BYTES = 32 << 10
"""Payload of a message that is long enough to time the link by."""

CONTROL_LIMIT = 256
"""Messages outside of sessions waiting to be sent: a peer that asks for more does not read its answers."""

RECORD = FRAGMENT_HEADER + FRAGMENT
"""Most bytes that are given to the pipe at once."""

CONTROL = b""
"""The queue of messages outside of sessions."""

Handler = Callable[["Channel", Message, bytes], Awaitable[None]]
"""Takes one message that the peer sent. It must return soon: the next one waits for it."""


class Channel:
    """Messages to and from ``peer``. ``run`` must be running for anything to move."""

    def __init__(self, pipe: Pipe, inbound: Inbound | None = None) -> None:
        self._pipe = pipe
        self._inbound = inbound or Inbound()
        self._stalled: float | None = None  # since when what the peer has begun has not grown
        self._loop = trio.lowlevel.current_trio_token()
        self._clock = trio.lowlevel.current_clock()
        self._lock = threading.Lock()  # over what is queued and who sends; held for microseconds
        self._queues: OrderedDict[bytes, deque[Outgoing]] = OrderedDict()
        self._queued = 0
        self._held: list[tuple[bytes, Outgoing]] = []
        self._pumping = False
        self._numbers = itertools.count()
        self._work = trio.Event()
        self._room = trio.Event()
        self._closed = trio.Event()
        self._ready = trio.Event()
        self._reason = "the channel was closed"
        self._heard = trio.current_time()
        self._used = self._heard  # when the last message that is no ping came or went
        self.received = 0
        """Bytes that came over the pipe, and that were given to it."""
        self.sent = 0
        self._asked: tuple[int, float] | None = None  # our last ping's nonce, and when it was sent
        self._probe: tuple[int, float, int] | None = None  # nonce, when, and the bytes up to and with it
        self.rtt_s: float | None = None
        """The last round trip of a ping over this channel, in seconds."""
        self.bytes_s: float | None = None
        """Bytes a second that long messages of ours reached, smoothed; ``None`` before the first.

        Behind a message of ``PROBE_BYTES`` or more goes a ping. Its pong comes when all that was queued up to
        it has arrived; the time, less the round trip of an idle channel, is what those bytes took. What other
        sessions of ours send meanwhile counts as a slower link, which for this session it is.
        """

    @property
    def peer(self) -> PeerId:
        return self._pipe.peer

    @property
    def carrier(self) -> CarrierName:
        return self._pipe.carrier

    @property
    def host(self) -> str:
        """The address that the peer comes from; empty where the carrier has none."""
        return self._pipe.host

    @property
    def closed(self) -> bool:
        return self._closed.is_set()

    @property
    def silent_s(self) -> float:
        """How long nothing has been heard of the peer, in seconds; it is pinged every ``PING_EVERY_S``."""
        return self._clock.current_time() - self._heard

    @property
    def idle_s(self) -> float:
        """How long nothing but pings has come or gone, in seconds."""
        return self._clock.current_time() - self._used

    async def send(self, message: Message, payload: Payload = b"") -> None:
        """Queue ``message``, behind earlier ones of its session. Returns before it has arrived.

        Raises:
            ChannelClosed: the channel is closed; nothing was sent.
        """
        await self.wait_room()
        await self._say(message, payload)
        if len(payload) >= PROBE_BYTES and self._ask_speed(message, len(payload)):
            self._wake()

    async def reply(self, message: Message) -> None:
        """Answer what the peer asked, without waiting: a peer that does not read its answers is hung up on.

        Raises:
            ChannelClosed: the channel is closed; nothing was sent.
            RemoteProtocolError: ``CONTROL_LIMIT`` messages are waiting already.
        """
        if self._put(message, b"", CONTROL):
            self._wake()

    @property
    def full(self) -> bool:
        """Whether ``QUEUED_LIMIT`` bytes are waiting to be sent."""
        return self._queued > QUEUED_LIMIT and not self.closed

    async def wait_room(self) -> None:
        """Wait until the channel is not full."""
        while self.full:
            self._room = trio.Event() if self._room.is_set() else self._room
            await self._room.wait()

    def post(self, message: Message, payload: Payload = b"") -> None:
        """Send from any thread, without waiting: at once if nothing is before it, else through the loop.

        Who posts keeps within a bound of his own; :meth:`send` waits when much is queued.

        Raises:
            ChannelClosed: the channel is closed; nothing was sent.
        """
        more = self._put(message, payload)
        if len(payload) >= PROBE_BYTES:
            more |= self._ask_speed(message, len(payload))
        if more:
            with suppress(trio.RunFinishedError):  # the loop has ended, and the channel with it
                self._loop.run_sync_soon(self._wake)

    def hold(self, message: Message, payload: Payload = b"") -> bool:
        """As :meth:`post`, but wait for :meth:`release`, so that what is held leaves in one piece.

        Returns:
            Whether it is the first: who holds it is to see to the release, and soon. A message that is sent
            meanwhile takes what is held along.
        """
        if len(payload) >= PROBE_BYTES:
            self.post(message, payload)
            return False
        self._note_use(message)
        with self._lock:
            return self._hold(message, payload, _key(message)) == 1

    def release(self) -> None:
        """Send what is held, from any thread. A channel that turns out to be broken is closed."""
        try:
            with self._lock:
                more = self._send_held()
        except ChannelClosed as error:
            then = partial(self.close, error.message)
        else:
            then = self._wake if more else None
        if then is not None:
            with suppress(trio.RunFinishedError):
                self._loop.run_sync_soon(then)

    async def _say(self, message: Message, payload: Payload = b"") -> None:
        if self._put(message, payload):
            self._wake()

    def _wake(self) -> None:
        self._work.set()

    async def wait_ready(self, deadline_s: float) -> None:
        """Wait until the peer has said hello.

        Raises:
            ChannelClosed: it hung up, speaks another version, or said nothing in time.
        """
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
            self._ready.set()
            self._room.set()

    async def run(self, handle: Handler) -> None:
        """Move messages until the channel closes, for whatever reason; then the pipe is closed too.

        A peer that breaks the protocol closes its own channel and nothing else.
        """
        try:
            async with trio.open_nursery() as nursery:
                await self._guard(partial(self._say, Hello(PROTOCOL_VERSION, AGENT)))
                for task in (self._pump, self._watch, partial(self._receive, handle)):
                    nursery.start_soon(self._guard, task)
                await self._closed.wait()
                nursery.cancel_scope.cancel()
        finally:
            self.close()
            self._inbound.note(self, 0)
            with trio.move_on_after(2, shield=True):
                await self._pipe.aclose()

    async def _guard(self, task: Callable[[], Awaitable[None]]) -> None:
        try:
            await task()
        except (ChannelClosed, RemoteProtocolError) as error:
            self.close(error.message)

    def _ask_speed(self, behind: Message, size: int) -> bool:
        """Put a ping behind a long message, in the same queue; whether the pump has something to do."""
        if self._probe is not None:
            return False
        self._probe = (secrets.randbits(62), self._clock.current_time(), max(size, self._queued))
        return self._put(Ping(self._probe[0]), b"", _key(behind))

    def _put(self, message: Message, payload: Payload, key: bytes | None = None) -> bool:
        """Send or queue a message; whether the pump has something to do."""
        self._note_use(message)
        with self._lock:
            self._hold(message, payload, _key(message) if key is None else key)
            return self._send_held()

    def _note_use(self, message: Message) -> None:
        if not isinstance(message, Ping | Pong):
            self._used = self._clock.current_time()

    def _hold(self, message: Message, payload: Payload, key: bytes) -> int:
        """Under the lock; returns how many are held."""
        if self.closed:
            raise ChannelClosed(f"no channel to {self.peer}: {self._reason}")
        if key == CONTROL and len(self._queues.get(CONTROL, ())) >= CONTROL_LIMIT:
            raise RemoteProtocolError("the peer asks and does not read")
        self._held.append((key, Outgoing(next(self._numbers) & 0xFFFFFFFF, message, payload)))
        return len(self._held)

    def _send_held(self) -> bool:
        """Send what is held, or queue it; under the lock. Whether the pump has something to do."""
        held, self._held = self._held, []
        sent = 0
        while sent < len(held) and not self._queues and not self._pumping:
            record, end = _record(held, sent)
            if not record or not self._pipe.send_now(record):
                break
            self.sent += len(record)
            sent = end
        for key, outgoing in held[sent:]:
            self._queues.setdefault(key, deque()).append(outgoing)
            self._queued += len(outgoing)
        return sent < len(held) or self._pipe.unsent

    def _next_fragment(self) -> bytes | None:
        """One fragment of the session whose turn it is; ``None`` when there is nothing to send."""
        with self._lock:
            self._pumping = bool(self._queues) or self._pipe.unsent
            if not self._queues:
                return b"" if self._pumping else None
            key, queue = next(iter(self._queues.items()))
            fragment = queue[0].next_fragment()
            if not len(queue[0]):
                queue.popleft()
            if queue:
                self._queues.move_to_end(key)
            else:
                del self._queues[key]
            self._queued -= len(fragment) - FRAGMENT_HEADER
            self.sent += len(fragment)
            return fragment

    async def _pump(self) -> None:
        while True:
            await self._work.wait()
            self._work = trio.Event()
            while (fragment := self._next_fragment()) is not None:
                if self._queued <= QUEUED_LIMIT:
                    self._room.set()
                with trio.move_on_after(SENT_WITHIN_S) as sending:
                    await self._pipe.send_all(fragment)
                if sending.cancelled_caught:
                    raise ChannelClosed(f"the peer has not read for {SENT_WITHIN_S:.0f} s")

    async def _receive(self, handle: Handler) -> None:
        assembler, held = Assembler(), 0
        while data := await self._pipe.receive_some():
            self._heard = trio.current_time()
            self.received += len(data)
            for message, payload in assembler.feed(data):
                await self._take(handle, message, payload)
            if assembler.held != held:
                held = assembler.held
                self._inbound.note(self, held)
                self._stalled = self._heard if held else None
        self.close("the peer hung up")

    async def _take(self, handle: Handler, message: Message, payload: bytes) -> None:
        if isinstance(message, Hello):
            if message.version != PROTOCOL_VERSION:
                raise RemoteProtocolError(
                    f"the peer speaks version {message.version} of the protocol, we speak {PROTOCOL_VERSION}"
                )
            self._ready.set()
        elif not self._ready.is_set():
            raise RemoteProtocolError(f"a {type(message).__name__} before the peer's hello")
        elif isinstance(message, Ping):
            await self._say(Pong(message.nonce))
        elif isinstance(message, Pong):
            self._pong(message)
        else:
            self._used = self._heard
            await handle(self, message, payload)

    def _pong(self, message: Pong) -> None:
        """Note what a ping of ours tells; an answer to anything else tells nothing."""
        if self._probe is not None and message.nonce == self._probe[0]:
            _, began, size = self._probe
            self._probe = None
            took = trio.current_time() - began
            bytes_s = size / max(took - (self.rtt_s or 0.0), took / 10, 1e-6)
            # A late pong may be a busy processor's; an early one is the link's (BBR keeps the largest, too).
            self.bytes_s = max(bytes_s, 0.8 * (self.bytes_s or 0.0) + 0.2 * bytes_s)
        if self._asked is not None and message.nonce == self._asked[0]:
            self.rtt_s = trio.current_time() - self._asked[1]

    async def _watch(self) -> None:
        with trio.move_on_after(HELLO_WITHIN_S):
            await self._ready.wait()
        if not self._ready.is_set():
            raise RemoteProtocolError(f"no hello within {HELLO_WITHIN_S:.0f} s")
        while True:
            asked = trio.current_time()
            self._asked = (secrets.randbits(62), asked)
            await self._say(Ping(self._asked[0]))
            await trio.sleep(PING_EVERY_S)
            late = trio.current_time() - asked - PING_EVERY_S  # our own loop's fault, not the peer's
            silent = self.silent_s - late
            if silent > DEAD_AFTER_S:
                raise ChannelClosed(f"nothing heard for {silent:.0f} s")
            if self._stalled is not None and trio.current_time() - self._stalled > ENDED_WITHIN_S:
                raise RemoteProtocolError(f"a message was begun and did not go on for {ENDED_WITHIN_S:.0f} s")


def _record(held: list[tuple[bytes, Outgoing]], start: int) -> tuple[bytes, int]:
    """The messages from ``start`` on that fit into one record, and where those begin that do not."""
    first = held[start][1].whole()
    parts, size = ([], 0) if first is None else ([first], len(first))
    end = start + len(parts)
    while parts and end < len(held):
        whole = held[end][1].whole()
        if whole is None or size + len(whole) > RECORD:
            break
        parts.append(whole)
        size += len(whole)
        end += 1
    return parts[0] if len(parts) == 1 else b"".join(parts), end


def _key(message: Message) -> bytes:
    """Which queue a message goes to: its session's, or that of all messages outside of sessions."""
    return getattr(message, "session", CONTROL)

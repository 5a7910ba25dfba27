"""The pipe of a channel, which may be replaced by another one without a byte lost or seen twice.

Both ends count the bytes that went since the channel began, and keep what the other has not yet said to have.
Who has a new pipe to the same peer tells it how many have come, hears the same, and both go on from there.

One task or thread writes at a time, as with any pipe (see :mod:`shoal.net.channel`). The lock is for the
tail, which the reader shortens meanwhile, and for what a thread writes while the pipe is replaced.
"""

from __future__ import annotations

import threading
from collections import deque

import trio

from shoal.errors import ChannelClosed
from shoal.net.moving.resume import message_bytes, say_goodbye
from shoal.net.moving.sent_tail import SentTail
from shoal.net.network import Pipe
from shoal.types import CarrierName, PeerId, Way
from shoal.wire.messages import Resumed

TAIL_HELD_S = 20.0
"""What a peer has not said to have for so long, though it says something, is not kept for another pipe."""
AWAY_S = 4.0
"""How long another pipe is waited for when one has ended."""


class MovingPipe:
    """Implements :class:`shoal.net.network.Pipe`.

    Args:
        moves: whether this end can go on over another pipe at all; the peer has to be able to, too.
    """

    def __init__(self, pipe: Pipe, *, moves: bool) -> None:
        self._pipe = pipe
        self._moves = moves
        self._lock = threading.Lock()
        self._tail = SentTail()
        self._advanced: float | None = None  # when the peer last had more, or nothing was kept
        self._resend = deque[bytes]()
        """What goes over a new pipe before all else."""
        self._skip = 0
        """Bytes that the peer sends again although they have come."""
        self._ahead = b""
        """What has come over the pipe and was not given out yet."""
        self._away = ""
        """Why the last pipe ended, while there is no other."""
        self._moved = trio.Event()
        self.can_move = False
        """Whether the peer, too, goes on over another pipe."""
        self.trouble = trio.Event()
        """Set when another pipe is needed."""
        self.received = 0
        """Bytes that have come since the channel began."""

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
    def host(self) -> str:
        return self._pipe.host

    @property
    def noise_key(self) -> bytes:
        return self._pipe.noise_key

    @property
    def away(self) -> bool:
        """Whether the last pipe has ended and there is no other."""
        return bool(self._away)

    @property
    def tail_whole(self) -> bool:
        """Whether all that the peer may lack is kept."""
        with self._lock:
            return self._tail.whole

    def settle(self, *, can_move: bool) -> None:
        """It is known what the peer can do."""
        self.can_move = self._moves and can_move
        if not self.can_move:
            with self._lock:
                self._moves = False
                self._tail.clear()

    def acknowledge(self, received: int) -> None:
        """The peer has so many bytes. Raises RemoteProtocolError: more than it was sent."""
        now = trio.current_time()
        with self._lock:
            before = self._tail.acknowledged
            self._tail.acknowledge(received)
            if self._tail.acknowledged > before or self._tail.empty or self._advanced is None:
                self._advanced = now
            given_up = now - self._advanced > TAIL_HELD_S
        if given_up:
            self.settle(can_move=False)

    def put_back(self, data: bytes) -> None:
        """Give this out before what comes next."""
        self._ahead = data + self._ahead

    @property
    def inner(self) -> Pipe:
        """The pipe that there is now."""
        return self._pipe

    def move(self, pipe: Pipe, answer: Resumed, ahead: bytes) -> Pipe | None:
        """Go on over another pipe, over which the peer has answered that it does.

        Args:
            ahead: what it has sent behind its answer.

        Returns:
            The old pipe, for the caller to close. ``None`` where that cannot be, as something is missing at
            one end; then the new pipe stays the caller's.
        """
        with self._lock:
            rest = self._tail.after(answer.received)
            if rest is None or answer.begins > self.received or not self._same_end(pipe):
                return None
            return self._replace(pipe, rest, skip=self.received - answer.begins, ahead=ahead)

    def take_over(self, pipe: Pipe, heard: int) -> Pipe | None:
        """Go on over another pipe, as the peer asks over it, and answer there. Returns as :meth:`move`.

        Args:
            heard: how many of our bytes the peer had when it asked.
        """
        with self._lock:
            # It may have told of more since, over the old pipe.
            begins = max(heard, self._tail.acknowledged)
            rest = self._tail.after(begins)
            if rest is None or not self._same_end(pipe):
                return None
            answer = message_bytes(Resumed(self.received, begins))
            return self._replace(pipe, [answer, *rest], skip=0, ahead=b"")

    def _same_end(self, pipe: Pipe) -> bool:
        """Whether it ends where this one did: in the same process, whoever else has the peer's identity."""
        return pipe.noise_key == self._pipe.noise_key

    def _replace(self, pipe: Pipe, first: list[bytes], *, skip: int, ahead: bytes) -> Pipe:
        old, self._pipe = self._pipe, pipe
        self._resend = deque(first)
        self._away, self._skip, self._ahead = "", skip, ahead
        self._moved.set()
        return old

    def send_now(self, data: bytes) -> bool:
        """As of any pipe; one that has broken takes nothing, and the next may."""
        with self._lock:
            if self._away or self._resend:
                return False
            try:
                taken = self._pipe.send_now(data)
            except ChannelClosed:
                if not self.can_move:
                    raise
                return False  # who sends it in another way finds out
            if taken and self._moves:
                self._tail.add(data)
            return taken

    @property
    def unsent(self) -> bool:
        return bool(self._resend) or self._pipe.unsent

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Send every byte, over this pipe or the next one."""
        if data and self._moves:
            with self._lock:
                self._tail.add(bytes(data))
        # Nothing is sent where a pipe is to go on with what it did not take at once.
        rest = data if data or self._pipe.unsent else None
        while rest is not None or self._resend:
            if self._away:
                await self._wait_moved()
                rest = None  # the new pipe begins with it, or the peer has it
                continue
            pipe = self._pipe
            piece = self._resend.popleft() if self._resend else rest
            if not self._resend and piece is rest:
                rest = None
            try:
                await pipe.send_all(piece or b"")
            except ChannelClosed as error:
                if not self._lose(pipe, error.message):
                    raise
            if pipe is not self._pipe:
                rest = None

    async def receive_some(self) -> bytes:
        """What comes next, over this pipe or the next one; nothing when the peer has hung up for good."""
        while True:
            pipe, reason = self._pipe, "the peer hung up"
            data, self._ahead = self._ahead, b""
            if not data:
                try:
                    data = await pipe.receive_some()
                except ChannelClosed as error:
                    reason = error.message
                    if not self._lose(pipe, reason):
                        raise
            if pipe is not self._pipe:
                continue  # it comes again over the new one
            if not data:
                if not self._lose(pipe, reason):
                    return b""
                await self._wait_moved()
                continue
            known = min(self._skip, len(data))
            self._skip -= known
            if known < len(data):
                self.received += len(data) - known
                return data[known:]

    async def aclose(self) -> None:
        """Close for good. A peer that could go on over another pipe is told not to look for one."""
        if self.can_move and not self._away:
            await say_goodbye(self._pipe)
        await self._pipe.aclose()

    def _lose(self, pipe: Pipe, reason: str) -> bool:
        """A pipe has ended; whether there may be another one."""
        if pipe is self._pipe and self.can_move and not self._away:
            self._away = reason
            self._moved = trio.Event()
            self.trouble.set()
        return pipe is not self._pipe or self.can_move

    async def _wait_moved(self) -> None:
        reason = self._away
        with trio.move_on_after(AWAY_S):
            await self._moved.wait()
            return
        raise ChannelClosed(reason)

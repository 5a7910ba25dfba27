"""Asks peers for pieces of one model, over channels of its own: the pull's way to the outside world."""

from __future__ import annotations

from collections import deque
from itertools import count
from typing import Protocol

import trio

from shoal.errors import ChannelClosed, DeadlineExceeded, RemoteProtocolError, from_code
from shoal.net.channel import Channel
from shoal.net.network import Network
from shoal.net.pool import ChannelPool
from shoal.types import Digest, PeerAddress, PeerId
from shoal.wire.fetching import Fetch, Fetched, FetchPart, NotFetched
from shoal.wire.messages import Message

REACH_WITHIN_S = 5.0
GIVEN_UP = 256
"""Answers that may still come although nobody waits for them any more."""


class PieceSource(Protocol):
    """Where pieces come from."""

    async def fetch(
        self, address: PeerAddress, part: FetchPart, item: int = 0, index: int = 0, *, deadline_s: float
    ) -> bytes:
        """A piece of the model, as a peer sends it: nothing of it is checked.

        Raises:
            ChannelClosed: the peer cannot be reached, or is gone.
            NotAllowed: it refuses us.
            DeadlineExceeded: it has not answered in time.
            RemoteProtocolError: it does not keep to the protocol.
            Busy: it has no time now; says when to ask again.
            ShoalError: it does not have the piece.
        """
        ...


class PeerFetcher:
    """A :class:`PieceSource` over a network. ``run`` must be running."""

    def __init__(self, network: Network, digest: Digest) -> None:
        self._digest = digest
        self._pool = ChannelPool(network, self._handle, self._closed)
        self._numbers = count(1)
        self._waiting: dict[int, _Answer] = {}
        self._given_up: deque[int] = deque(maxlen=GIVEN_UP)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Move messages until cancelled."""
        await self._pool.run(accept=False, task_status=task_status)

    @property
    def received(self) -> int:
        """Bytes that came over all channels."""
        return self._pool.received

    async def fetch(
        self, address: PeerAddress, part: FetchPart, item: int = 0, index: int = 0, *, deadline_s: float
    ) -> bytes:
        """See :meth:`PieceSource.fetch`."""
        until = trio.current_time() + deadline_s
        channel = await self._pool.get(address, deadline_s=min(REACH_WITHIN_S, deadline_s))
        number = next(self._numbers)
        answer = self._waiting[number] = _Answer(channel)
        try:
            channel.send_now(Fetch(number, self._digest, part, item, index))
            with trio.move_on_at(until):
                await answer.came.wait()
            return answer.result(address.peer)
        finally:
            del self._waiting[number]
            if not answer.came.is_set():
                self._given_up.append(number)

    async def _handle(self, channel: Channel, message: Message, payload: bytes) -> None:
        if not isinstance(message, Fetched | NotFetched):
            raise RemoteProtocolError(f"a {type(message).__name__} to who fetches weights")
        answer = self._waiting.get(message.number)
        if answer is not None and answer.channel is channel and not answer.came.is_set():
            answer.message, answer.payload = message, payload
            answer.came.set()
        elif message.number in self._given_up:
            self._given_up.remove(message.number)  # one answer to each question
        else:
            raise RemoteProtocolError("a piece that nobody has asked for")

    def _closed(self, channel: Channel, reason: str) -> None:
        for answer in self._waiting.values():
            if answer.channel is channel and not answer.came.is_set():
                answer.lost = reason
                answer.came.set()


class _Answer:
    """What is waited for."""

    def __init__(self, channel: Channel) -> None:
        self.channel = channel
        self.came = trio.Event()
        self.message: Fetched | NotFetched | None = None
        self.payload = b""
        self.lost = ""

    def result(self, peer: PeerId) -> bytes:
        if self.lost:
            raise ChannelClosed(f"{peer}: {self.lost}")
        if self.message is None:
            raise DeadlineExceeded(f"{peer} did not send a piece in time")
        if isinstance(self.message, NotFetched):
            refused = self.message
            raise from_code(refused.code, refused.message, retry_after_s=refused.retry_after_s)
        return self.payload

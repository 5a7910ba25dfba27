"""Gives pieces of this machine's models to whoever asks, within bounds, and behind the sessions here.

Each peer has a queue of its own and one task that answers it, so a slow one holds up nobody. Reading is done
on threads, two at a time.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from functools import partial

import msgspec
import trio

from shoal.config import Settings
from shoal.errors import Busy, ChannelClosed, RemoteProtocolError, ShoalError, UnknownModel
from shoal.net.channel import Channel
from shoal.net.handshake_backlog import network_of
from shoal.net.network import Network
from shoal.net.pool import ChannelPool
from shoal.sharing.share_pace import SharePace
from shoal.sharing.shared_model import SharedModel
from shoal.swarm.membership import PUBLIC
from shoal.tasks import ends_alone
from shoal.types import Digest, PeerId
from shoal.wire.fetching import MAX_PIECE, Fetch, Fetched, NotFetched
from shoal.wire.fields import NextHop
from shoal.wire.messages import Message, shorten

PER_PEER = 32
"""Pieces that one peer may have asked for and not got: twice what ours ask for at once."""
MAX_PEERS = 32
"""Peers that are answered at a time."""
PER_NETWORK = 16
"""Of them, those that come from one network: keys cost nothing."""
QUEUED_BYTES = 4 << 20
"""On a channel, past which the next piece waits: what is queued is memory, and a step may wait behind it."""
ANSWER_WITHIN_S = 15.0
"""Less than who asks waits: it hears that we are busy, and does not have to find out."""
LOOK_EVERY_S = 0.01
READERS = 2
ADDRESS_PROTOCOL = "/shoal/weights-address/1"
QUEUE = b"weights"
"""The queue of a channel that pieces wait in: sessions' messages have others, and all take turns."""

log = logging.getLogger(__name__)


def shares_weights(settings: Settings) -> bool:
    """Whether a node with these settings gives weights away."""
    return settings.share == "on" or (settings.share == "auto" and settings.swarm != PUBLIC)


def answer_address(network: Network) -> None:
    """Tell who asks where our direct carrier is: who shares and serves nothing announces no address."""

    async def answer(peer: PeerId, question: bytes) -> bytes:
        return msgspec.msgpack.encode(NextHop.of(network.address))

    network.answer(ADDRESS_PROTOCOL, answer)


class WeightServer:
    """Answers every ``Fetch``. ``run`` must be running."""

    def __init__(
        self,
        pace: SharePace,
        *,
        steps_waiting: Callable[[], int] = lambda: 0,
        steps: Callable[[], int] = lambda: 0,
    ) -> None:
        """
        Args:
            steps_waiting: how many steps of sessions are here now: while there are any, nothing is sent.
            steps: how many were computed since this process began.
        """
        self._pace = pace
        self._steps_waiting = steps_waiting
        self._steps = steps
        self._steps_seen = steps()
        self._models: dict[Digest, SharedModel] = {}
        self._peers: dict[PeerId, deque[tuple[Channel, Fetch]]] = {}
        """What each has asked for and not got."""
        self._readers = trio.CapacityLimiter(READERS)
        self._nursery: trio.Nursery | None = None
        self.sent = 0
        """Bytes of pieces that were sent."""

    def share(self, shared: SharedModel) -> None:
        """Give the pieces of a model from now on; those of an adapter by its manifest's digest too."""
        self._models[shared.model.digest] = self._models[shared.manifest.digest] = shared

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Answer until cancelled."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            task_status.started()
            await trio.sleep_forever()

    async def take(self, channel: Channel, message: Message, payload: bytes) -> None:
        """Take a ``Fetch`` in; it is answered later, or refused now.

        Raises:
            RemoteProtocolError: it is something else, or the peer asks on and does not read its answers.
        """
        if not isinstance(message, Fetch):
            raise RemoteProtocolError(f"a {type(message).__name__} to who gives weights")
        waiting = self._peers.get(channel.peer)
        if self._nursery is None or (waiting is None and not self._has_room(channel.host)):
            _refuse(channel, message, Busy("others are being given weights", retry_after_s=5.0))
            return
        if waiting is None:
            waiting = self._peers[channel.peer] = deque[tuple[Channel, Fetch]]()
            self._nursery.start_soon(self._answer_all, channel.peer, waiting)
        elif len(waiting) >= PER_PEER:
            _refuse(channel, message, Busy(f"{PER_PEER} pieces are asked for and not sent yet"))
            return
        waiting.append((channel, message))

    def _has_room(self, host: str) -> bool:
        """Whether one more peer, from ``host``, is answered."""
        network = network_of(host)
        hosts = [waiting[0][0].host for waiting in self._peers.values()]
        nearby = sum(network_of(other) == network for other in hosts) if host else 0
        return len(hosts) < MAX_PEERS and nearby < PER_NETWORK

    async def _answer_all(self, peer: PeerId, waiting: deque[tuple[Channel, Fetch]]) -> None:
        try:
            while waiting:
                channel, message = waiting[0]
                with ends_alone(log, f"an answer to {peer}"), suppress(ChannelClosed):
                    await self._answer(channel, message)
                waiting.popleft()  # only now: it counts until it is sent
        finally:
            del self._peers[peer]

    async def _answer(self, channel: Channel, message: Fetch) -> None:
        if channel.closed:
            return
        try:
            with trio.move_on_after(ANSWER_WITHIN_S):
                await self._wait_turn(channel)
                data = await trio.to_thread.run_sync(partial(self._read, message), limiter=self._readers)
                self.sent += len(data)
                channel.send_now(Fetched(message.number, len(data)), data, QUEUE)
                return
            raise Busy("sessions are served first", retry_after_s=1.0)
        except ChannelClosed:
            raise
        except ShoalError as error:
            _refuse(channel, message, error)

    def _read(self, message: Fetch) -> bytes:
        shared = self._models.get(Digest(message.digest))
        if shared is None:
            raise UnknownModel(f"{message.digest} is not shared here")
        match message.part:
            case "offer":
                return shared.offer()
            case "manifest":
                return shared.manifest_piece(message.index)
            case "hashes":
                return shared.hashes_piece(message.item, message.index)
            case "chunk":
                return shared.chunk(message.item, message.index)

    async def _wait_turn(self, channel: Channel) -> None:
        """Wait until no step is here, the rate allows a piece, and the peer has read most of those before."""
        while not channel.closed:
            now = trio.current_time()
            if self._steps_waiting() or self._steps() != self._steps_seen:
                self._steps_seen = self._steps()
                self._pace.note_step(now)
            wait_s = LOOK_EVERY_S
            if not self._steps_waiting() and channel.queued_bytes < QUEUED_BYTES:
                wait_s = self._pace.wait_s(MAX_PIECE, now)
                if not wait_s:
                    return
            await trio.sleep(wait_s)


async def serve_weights(
    network: Network,
    shared: SharedModel,
    bytes_s: int,
    *,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Give the pieces of a model to whoever asks, as a peer that does nothing else, until cancelled.

    Args:
        bytes_s: bytes a second at most; 0 for no bound.
    """
    answer_address(network)
    weights = WeightServer(SharePace(bytes_s))
    weights.share(shared)
    pool = ChannelPool(network, weights.take, _hung_up, known=lambda _: False)
    async with trio.open_nursery() as nursery:
        await nursery.start(weights.run)
        await nursery.start(partial(pool.run, accept=True))
        task_status.started()


def _hung_up(channel: Channel, reason: str) -> None:
    """What it has asked for is not answered; nothing else is held for it."""


def _refuse(channel: Channel, message: Fetch, error: ShoalError) -> None:
    retry_after_s = error.retry_after_s if isinstance(error, Busy) else 0.0
    with suppress(ChannelClosed):
        channel.reply(NotFetched(message.number, error.code, shorten(error.message), retry_after_s))

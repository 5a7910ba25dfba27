"""The channels of a peer: one to each other peer, shared by all sessions, dialled or accepted."""

from __future__ import annotations

import logging
import secrets
from collections import defaultdict
from collections.abc import Callable
from statistics import median_low

import trio

from shoal.errors import ChannelClosed
from shoal.keyed_locks import KeyedLocks
from shoal.net.channel import AtOnce, Channel, Handler
from shoal.net.dial_budget import DialBudget
from shoal.net.handshake_backlog import network_of
from shoal.net.moving.mover import Mover, Where
from shoal.net.moving.resume import REVIVED
from shoal.net.network import Network, Pipe
from shoal.net.receive_budget import ReceiveBudget
from shoal.tasks import ends_alone, seconds_left
from shoal.types import PeerAddress, PeerId
from shoal.wire.messages import Resume

CHANNELS_LIMIT = 1024
"""Channels of a process. Past it, one that no session needs makes room for one that another peer opens."""
PER_NETWORK_LIMIT = 256
"""The same for those that come from one network, so that no one subscriber's machines take all the places."""
PER_PEER_LIMIT = 8
"""Channels that one peer may open to us; one more is closed at once."""
IDLE_S = 120.0
"""A channel that we have dialled, and over which nothing but pings goes for so long, is closed."""
NAME_BYTES = 16
"""Of a channel's name, by which it goes on over another pipe."""

log = logging.getLogger(__name__)


class ChannelPool:
    """Channels by peer. ``run`` must be running.

    Args:
        handle: takes every message of every channel.
        closed: told of every channel that has ended, whoever opened it.
        known: whether a peer takes part in what we do, so that it may send long messages.
        held: whether a channel is needed although nothing goes over it now.
        where: where a peer says now that it is; by default what it was dialled at.
        at_once: as of :meth:`Channel.run`, for every channel.
    """

    def __init__(
        self,
        network: Network,
        handle: Handler,
        closed: Callable[[Channel, str], None],
        known: Callable[[PeerId], bool] = lambda _: True,
        held: Callable[[Channel], bool] = lambda _: False,
        where: Where = lambda _: None,
        at_once: AtOnce | None = None,
    ) -> None:
        self._known = known
        self._held = held
        self._dialled: set[Channel] = set()
        self.inbound = ReceiveBudget(known)
        self._dial_budget = DialBudget()
        self._network = network
        self._handle = handle
        self._at_once = at_once
        self._on_closed = closed
        self._channels: dict[PeerId, list[Channel]] = defaultdict(list)
        self._dialling = KeyedLocks[PeerId]()
        self._nursery: trio.Nursery | None = None
        self._mover = Mover(network, where, held)
        self._received = self._sent = 0  # over channels that have ended
        self._bytes_s = 0.0

    async def run(
        self, *, accept: bool, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Move messages on every channel until cancelled; with ``accept``, take in those of other peers."""
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                nursery.start_soon(self._tidy)
                task_status.started()
                if accept:
                    async for pipe in self._network.accept_pipes():
                        self._take_in(nursery, pipe)
                else:
                    await trio.sleep_forever()
        finally:
            self._nursery = None

    async def get(
        self, address: PeerAddress, *, deadline_s: float, asked_by: PeerId | None = None
    ) -> Channel:
        """A channel to the peer that has said hello: the one there is, or a new one.

        Args:
            asked_by: the peer that wants us to reach this one.

        Raises:
            Busy: ``asked_by`` has had us dial too often.
            ChannelClosed: the peer cannot be reached in time.
            NotAllowed: the peer refuses us.
        """
        # One dial for each peer: whoever else wants it waits here, and finds the channel made.
        until = trio.current_time() + deadline_s
        channel: Channel | None = None
        try:
            with trio.fail_at(until):
                async with self._dialling.held(address.peer):
                    channel = self._live(address.peer) or await self._dial(address, deadline_s, asked_by)
                    await channel.wait_ready(seconds_left(until))
                    return channel
        except trio.TooSlowError:
            # The next who asks would find it, and wait for its hello in vain as well.
            if channel is not None and not channel.ready:
                channel.close("the peer did not answer")
            raise ChannelClosed(f"{address.peer} did not answer within {deadline_s:.0f} s") from None

    def all(self) -> list[Channel]:
        """Every live channel."""
        return [channel for channels in self._channels.values() for channel in channels]

    async def wait_sent(self, within_s: float) -> None:
        """Wait, also when cancelled, until what was sent over every channel has been given to its pipe."""
        with trio.move_on_after(within_s, shield=True):
            for channel in self.all():
                await channel.wait_sent()

    @property
    def received(self) -> int:
        """Bytes that came over all channels that there ever were."""
        return self._received + sum(channel.received for channel in self.all())

    @property
    def sent(self) -> int:
        """Bytes that went over them."""
        return self._sent + sum(channel.sent for channel in self.all())

    @property
    def bytes_s(self) -> float:
        """Bytes a second that long messages reached over the usual one of our ways; 0 when none was timed."""
        timed = [speed for channel in self.all() if (speed := channel.bytes_s) is not None]
        # A way that has ended says nothing of others; but with none left, the last is the best that is known.
        self._bytes_s = median_low(timed) if timed else self._bytes_s
        return self._bytes_s

    @property
    def moved(self) -> int:
        """Times that a channel of ours has gone on over another pipe."""
        return self._mover.moved

    def _live(self, peer: PeerId) -> Channel | None:
        return next((c for c in self._channels.get(peer, ()) if not (c.closed or c.away)), None)

    async def _dial(self, address: PeerAddress, deadline_s: float, asked_by: PeerId | None) -> Channel:
        nursery = self._nursery
        if nursery is None:
            raise ChannelClosed("this peer is not running")
        if asked_by is not None:
            # Before anybody answers: it is our knocking that costs others, not the channel.
            self._dial_budget.ask(asked_by, trio.current_time())
        pipe = await self._network.open_pipe(address, deadline_s=deadline_s)
        # We may have ended, or begun again, while we dialled; nobody there would close this pipe.
        if self._nursery is not nursery:
            await pipe.aclose()
            raise ChannelClosed("this peer has ended")
        channel = self._start(nursery, pipe)
        self._dialled.add(channel)
        nursery.start_soon(self._look_after, channel, address)
        return channel

    async def _look_after(self, channel: Channel, address: PeerAddress) -> None:
        with ends_alone(log, f"the look for another way to {channel.peer}"):
            await self._mover.look_after(channel, address)
            return
        channel.close("an error of ours")

    def _revive(self, pipe: Pipe, wanted: Resume) -> bool:
        """Whether a pipe that a peer opens is for a channel that it has dialled before."""
        known = (c for c in self._channels.get(pipe.peer, ()) if c.name == wanted.channel)
        channel = next((c for c in known if c not in self._dialled), None)
        return channel is not None and channel.take_over(pipe, wanted.received)

    async def _tidy(self) -> None:
        while True:
            await trio.sleep(IDLE_S / 4)
            # Of channels that others have opened, they judge themselves how long they need them; for room,
            # see below.
            for channel in self._dialled:
                if channel.idle_s > IDLE_S and not self._held(channel):
                    channel.close("nothing has gone over it for a while")

    def _take_in(self, nursery: trio.Nursery, pipe: Pipe) -> None:
        if len(self._channels.get(pipe.peer, ())) < PER_PEER_LIMIT and self._make_room(pipe.host):
            self._start(nursery, pipe, accepted=True)
        else:
            nursery.start_soon(pipe.aclose)  # which may take a while, and others wait to be accepted

    def _make_room(self, host: str) -> bool:
        """Whether there is room for a channel from ``host``, if need be that of one which no session needs.

        Strangers go first, and of them who has been idle longest: to answer pings is no use of a channel.
        """
        live = [channel for channel in self.all() if not channel.closed]
        nearby = [c for c in live if host and network_of(c.host) == network_of(host)]
        crowded = nearby if len(nearby) >= PER_NETWORK_LIMIT else live if len(live) >= CHANNELS_LIMIT else []
        if not crowded:
            return True
        spare = [c for c in crowded if c not in self._dialled and not self._held(c)]
        if not spare:
            return False
        least = max(spare, key=lambda channel: (not self._known(channel.peer), channel.idle_s))
        least.close("others need its place, and no session does")
        return True

    def _start(self, nursery: trio.Nursery, pipe: Pipe, *, accepted: bool = False) -> Channel:
        name, revive = secrets.token_bytes(NAME_BYTES), self._revive if accepted else None
        channel = Channel(pipe, self.inbound, name, revive)
        self._channels[channel.peer].append(channel)
        nursery.start_soon(self._run, channel)
        if accepted:
            nursery.start_soon(self._watch, channel)
        return channel

    async def _watch(self, channel: Channel) -> None:
        with ends_alone(log, f"the watch over a channel of {channel.peer}"):
            await self._mover.watch(channel)

    async def _run(self, channel: Channel) -> None:
        try:
            await channel.run(self._handle, self._at_once)
        finally:
            self._received += channel.received
            self._sent += channel.sent
            self._dialled.discard(channel)
            self._channels[channel.peer].remove(channel)
            if not self._channels[channel.peer]:
                del self._channels[channel.peer]
            # Last: whoever hears of it, and looks for another channel, must not find this one.
            if channel.reason != REVIVED:
                self._on_closed(channel, channel.reason)

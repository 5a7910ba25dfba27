"""Finds other pipes for the channels that we have dialled: better ones, and others for lost ones."""

from __future__ import annotations

import logging
from collections.abc import Callable

import trio

from shoal.errors import ChannelClosed, NotAllowed, RemoteProtocolError
from shoal.net.channel import Channel
from shoal.net.moving.resume import ask_to_resume
from shoal.net.moving.schedule import MoveSchedule
from shoal.net.network import Network, Pipe
from shoal.types import PeerAddress, PeerId

RESCUED_WITHIN_S = 3.0
"""For a new pipe in place of one that is gone; a session bears a silent hop for as long."""
FOUND_WITHIN_S = 5.0
"""For a better one."""
AGAIN_S = 0.5
"""Between two rescues of a channel that is silent and not ended."""
RECENT_S = 10.0
"""A channel that was used so lately is needed."""
LOOK_EVERY_S = 2.0
"""How often it is seen whether something has changed at either end."""

log = logging.getLogger(__name__)

Where = Callable[[PeerId], PeerAddress | None]
"""Where a peer says now that it is; ``None`` when it says nothing."""


class Mover:
    """The other pipes of one process's channels.

    Args:
        where: asked before each dial, as peers move.
        needed: whether a session needs a channel although nothing goes over it now.
    """

    def __init__(self, network: Network, where: Where, needed: Callable[[Channel], bool]) -> None:
        self._network = network
        self._where = where
        self._needed = needed
        self.moved = 0
        """Channels that went on over another pipe."""

    async def look_after(self, channel: Channel, address: PeerAddress) -> None:
        """Look after one channel until it closes."""
        schedule = MoveSchedule(trio.current_time())
        while not channel.closed:
            with trio.move_on_after(self._rest_s(channel, schedule, address)):
                await channel.wait_trouble()
            if channel.closed:
                return
            if channel.troubled:
                await self._rescue(channel, schedule, address)
            elif could_be_better(channel) and self._rest_s(channel, schedule, address) <= 0:
                # A way that is lost meanwhile is more urgent than a better one.
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(_until_trouble, channel, nursery.cancel_scope)
                    await self._improve(channel, schedule, address)
                    nursery.cancel_scope.cancel()

    def _rest_s(self, channel: Channel, schedule: MoveSchedule, address: PeerAddress) -> float:
        """Seconds until there is something to look at."""
        if not could_be_better(channel):
            return LOOK_EVERY_S * 30
        now, reach = trio.current_time(), self._network.reach()
        circumstances = (self._address(address), reach.nat, reach.seen)
        return min(max(0.0, schedule.look_at(circumstances, now) - now), LOOK_EVERY_S)

    def _address(self, known: PeerAddress) -> PeerAddress:
        return self._where(known.peer) or known

    async def _rescue(self, channel: Channel, schedule: MoveSchedule, address: PeerAddress) -> None:
        ended = channel.away
        if ended and channel.idle_s > RECENT_S and not self._needed(channel):
            channel.close("its connection ended, and nothing needs it")
            return
        if not schedule.may_rescue(trio.current_time()):
            if ended:
                channel.close("its connection breaks again and again")
            else:  # it is dead soon, or speaks again
                await trio.sleep(AGAIN_S)
            return
        self._network.doubt_ways()
        with trio.move_on_after(RESCUED_WITHIN_S):
            try:
                pipe = await self._network.open_pipe(self._address(address), deadline_s=RESCUED_WITHIN_S)
                if await self._move(channel, pipe):
                    schedule.begin_again(trio.current_time())
                    return
            except (ChannelClosed, NotAllowed, RemoteProtocolError) as error:
                log.debug("no other way to %s: %s", channel.peer, error.message)
        if ended and channel.away:
            # Most often the peer is dead, and its sessions are to go on elsewhere at once.
            channel.close("the connection ended, and there is no other way to the peer")
        elif channel.troubled:
            await trio.sleep(AGAIN_S)

    async def watch(self, channel: Channel) -> None:
        """See to it that whoever has dialled a channel can call us when its pipe is lost, until it closes."""
        while not channel.closed:
            await channel.wait_trouble()
            needed = channel.idle_s <= RECENT_S or self._needed(channel)
            if not channel.closed and channel.troubled and needed:
                self._network.doubt_ways()
            await trio.sleep(AGAIN_S)

    async def _improve(self, channel: Channel, schedule: MoveSchedule, address: PeerAddress) -> None:
        try:
            pipe = await self._network.open_direct(self._address(address), deadline_s=FOUND_WITHIN_S)
            if await self._move(channel, pipe):
                schedule.begin_again(trio.current_time())
                return
        except (ChannelClosed, NotAllowed, RemoteProtocolError) as error:
            log.debug("no better way to %s: %s", channel.peer, error.message)
        schedule.looked(trio.current_time())

    async def _move(self, channel: Channel, pipe: Pipe) -> bool:
        """Have the channel go on over a pipe, which is closed if it does not."""
        moved = False
        try:
            # For a better way nothing is risked; in place of a lost one there is nothing to lose.
            if channel.can_move or channel.away:
                answer, ahead = await ask_to_resume(pipe, channel.peers_name, channel.received)
                moved = channel.move(pipe, answer, ahead)
                if not moved:  # the peer has left the old pipe by now
                    channel.close("it could not go on over another connection")
        finally:
            if not moved:
                with trio.move_on_after(2, shield=True):
                    await pipe.aclose()
        self.moved += moved
        return moved


async def _until_trouble(channel: Channel, look: trio.CancelScope) -> None:
    await channel.wait_trouble()
    look.cancel()


def could_be_better(channel: Channel) -> bool:
    """Whether somebody, or a slower carrier, is between us and the peer."""
    # Of iroh nobody tells us whether it goes over a relay at the moment.
    return channel.carrier in ("relayed", "libp2p-stream", "iroh") or channel.way == "relayed"

"""What a client asks of its session when a hop is late or lost: how far it is here, and who is beside it now.

Only the channel that opened a session may ask. The session's steps go on meanwhile.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial

from shoal.errors import Busy, ChannelClosed, NotAllowed, OutdatedPeer, UnknownSession
from shoal.net.channel import Channel
from shoal.net.pool import ChannelPool
from shoal.node.admission import check_neighbours, reach_next
from shoal.node.handlers import Handlers
from shoal.node.hop import Hop
from shoal.node.load import LoadMeter
from shoal.node.sessions import Sessions
from shoal.types import PeerId, SessionId
from shoal.wire.messages import Failed, Locate, Reroute, Rerouted

NOT_YOURS = "no such session here, or not of this peer"
"""The same words for both: a stranger learns nothing."""


class Rerouting:
    """Handles ``Locate`` and ``Reroute``.

    Args:
        peer: this node.
        spawn: runs what takes long in a task of its own.
    """

    def __init__(
        self,
        sessions: Sessions,
        channels: ChannelPool,
        load: LoadMeter,
        peer: PeerId,
        spawn: Callable[[Callable[[], Awaitable[None]]], None],
    ) -> None:
        self._sessions = sessions
        self._channels = channels
        self._load = load
        self._peer = peer
        self._spawn = spawn
        self._changing: set[Hop] = set()
        """Sessions whose next hop is being dialled. Each has one change at a time: of two, the one that was
        asked for first might come last, and undo the other."""

    def register(self, handlers: Handlers) -> None:
        """Have the messages given here."""
        handlers.register(Locate, self._locate)
        handlers.register(Reroute, self._reroute)

    async def _locate(self, channel: Channel, message: Locate, payload: bytes) -> None:
        hop = self._hop(channel, message)
        if hop is not None:
            channel.reply(hop.located())

    async def _reroute(self, channel: Channel, message: Reroute, payload: bytes) -> None:
        hop = self._hop(channel, message)
        if hop is not None:
            # Dialling the new next hop takes a while: other sessions of this channel must not wait.
            self._spawn(partial(self._change_route, channel, message, hop))

    def _hop(self, channel: Channel, message: Locate | Reroute) -> Hop | None:
        """The session of which ``message`` speaks; its sender is told if it may not."""
        hop = self._sessions.get(SessionId(message.session))
        if hop is not None and hop.client is channel:
            return hop
        place = message.hop if isinstance(message, Reroute) else 0
        channel.reply(Failed(message.session, None, place, UnknownSession.code, NOT_YOURS))
        return None

    async def _change_route(self, channel: Channel, message: Reroute, hop: Hop) -> None:
        kept = False
        if hop not in self._changing:
            self._changing.add(hop)
            try:
                # What is refused here is not kept either, and the client replays.
                with suppress(ChannelClosed, NotAllowed, Busy, OutdatedPeer):
                    kept = await self._changed(channel, message, hop)
            finally:
                self._changing.remove(hop)
        with suppress(ChannelClosed):  # the client is gone, or does not read
            channel.reply(Rerouted(message.session, kept))

    async def _changed(self, channel: Channel, message: Reroute, hop: Hop) -> bool:
        check_neighbours(message, self._peer)
        onward = None
        if message.next is not None:
            onward = await reach_next(self._channels, message.next, channel.peer)
        # The session may have ended while its next hop was dialled.
        kept = self._sessions.get(hop.session) is hop and hop.reroute(message, onward)
        self._sessions.expect(hop.sender)
        self._load.note_reroute(resent=message.resend is not None)
        return kept

"""Where answers begin and end, as clients that are traced tell their hops."""

from __future__ import annotations

import logging

from shoal.errors import RemoteProtocolError
from shoal.metrics.logs import about
from shoal.metrics.tracing import SPAN_BYTES, TRACE_BYTES, TraceContext
from shoal.net.channel import Channel
from shoal.node.handlers import Handlers
from shoal.node.sessions import Sessions
from shoal.types import SessionId
from shoal.wire.turn import TraceTurn

log = logging.getLogger(__name__)


class TurnDesk:
    """Handles ``TraceTurn``."""

    def __init__(self, sessions: Sessions) -> None:
        self._sessions = sessions

    def register(self, handlers: Handlers) -> None:
        """Have the messages given here."""
        handlers.register(TraceTurn, self._turn)

    async def _turn(self, channel: Channel, message: TraceTurn, payload: bytes) -> None:
        if message.trace and (len(message.trace), len(message.span)) != (TRACE_BYTES, SPAN_BYTES):
            raise RemoteProtocolError("a trace with an id that is none")
        hop = self._sessions.get(SessionId(message.session))
        if hop is None or hop.client is not channel:
            return  # it has ended meanwhile; nobody waits for an answer
        context = TraceContext(message.trace, message.span, message.sampled) if message.trace else None
        hop.begin_turn(context)
        if context:
            log.info("an answer begins", extra=about(channel.peer, message.session, context.trace))

"""Who may ask for which segments of a node: open sessions, and what each has waiting. Pure: the caller brings
the time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from shoal.errors import Busy, NotAllowed
from shoal.net.channel import Channel
from shoal.types import PeerId, SessionId, Span

PER_SESSION = 4
"""Requests of one session that wait or are computed."""
MAX_REQUESTS = 64
"""The same of all sessions."""
MAX_REQUEST_BYTES = 512 << 20
"""Bytes of tensors that all of these have brought."""
IDLE_S = 30.0
"""A session that has asked for nothing for so long gives its place to another, when all are taken."""
RETRY_AFTER_S = 1.0


@dataclass(eq=False)
class GraphSession:
    """One client's way to some segments."""

    session: SessionId
    channel: Channel
    span: Span
    used: float
    """When it last asked for something, or was answered."""
    requests: int = 0
    """That wait or are computed."""


@dataclass
class GraphSessions:
    """The open sessions of one node."""

    most: int
    _sessions: dict[SessionId, GraphSession] = field(default_factory=dict[SessionId, GraphSession])
    requests: int = 0
    """Of all sessions, that wait or are computed."""
    request_bytes: int = 0

    def __len__(self) -> int:
        return len(self._sessions)

    @property
    def free(self) -> int:
        """Requests that are still taken."""
        return MAX_REQUESTS - self.requests

    def open(
        self, session: SessionId, channel: Channel, span: Span, now: float
    ) -> tuple[GraphSession, GraphSession | None]:
        """A new session, and the idle one that has given its place to it.

        Raises:
            Busy: every place is taken.
            NotAllowed: the session is open already.
        """
        if session in self._sessions:
            raise NotAllowed("a session of this id is open already")
        gone = None
        if len(self._sessions) >= self.most:
            idle = [one for one in self._sessions.values() if not one.requests and now - one.used >= IDLE_S]
            gone = min(idle, key=lambda one: one.used, default=None)
            if gone is None:
                raise Busy(f"all {self.most} sessions are in use", retry_after_s=RETRY_AFTER_S)
            del self._sessions[gone.session]
        opened = self._sessions[session] = GraphSession(session, channel, span, now)
        return opened, gone

    def get(self, session: SessionId, channel: Channel) -> GraphSession | None:
        """An open session, for the channel that has opened it."""
        found = self._sessions.get(session)
        return found if found is not None and found.channel is channel else None

    def begin(self, session: GraphSession, size: int, now: float) -> None:
        """Take one more request of ``size`` bytes.

        Raises:
            Busy: this session, or all together, have as many as are taken.
        """
        if session.requests >= PER_SESSION or not self.free:
            raise Busy("too many requests wait here", retry_after_s=RETRY_AFTER_S)
        if self.request_bytes and self.request_bytes + size > MAX_REQUEST_BYTES:
            raise Busy("the requests that wait here are too large together", retry_after_s=RETRY_AFTER_S)
        session.requests += 1
        session.used = now
        self.requests += 1
        self.request_bytes += size

    def end(self, session: GraphSession, size: int, now: float) -> None:
        """A request was answered, or nobody wants its answer any more."""
        session.requests -= 1
        session.used = now
        self.requests -= 1
        self.request_bytes -= size

    def close(self, session: SessionId, channel: Channel) -> None:
        """End a session; another channel's is left alone."""
        if self.get(session, channel) is not None:
            del self._sessions[session]

    def lost(self, channel: Channel) -> None:
        """End the sessions of a channel that is gone."""
        for session in [one for one, found in self._sessions.items() if found.channel is channel]:
            del self._sessions[session]

    def knows(self, peer: PeerId) -> bool:
        """Whether a peer has a session, so that it may send long messages."""
        return self._any(lambda channel: channel.peer == peer)

    def holds(self, channel: Channel) -> bool:
        """Whether a session needs a channel."""
        return self._any(lambda other: other is channel)

    def _any(self, fits: Callable[[Channel], bool]) -> bool:
        return any(fits(session.channel) for session in self._sessions.values())

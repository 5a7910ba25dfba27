"""Who may ask for which segments of a node: open sessions, and what each has waiting. Pure: the caller brings
the time.

Places of sessions are shared out by :mod:`shoal.node.fair_share`. Of requests, and of the bytes that they and
their answers take, no peer and no network has more than a share: identities cost nothing, and what is begun
cannot be taken back.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import trio

from shoal.errors import Busy, NotAllowed
from shoal.net.channel import Channel
from shoal.net.handshake_backlog import network_of
from shoal.node.fair_share import Asker, SessionShare, make_place
from shoal.types import PeerId, SessionId, Span

PER_SESSION = 4
"""Requests of one session that wait or are computed."""
MAX_REQUESTS = 64
"""The same of all sessions."""
MAX_REQUEST_BYTES = 512 << 20
"""Bytes of tensors that all of these have brought, or that were made of them and are not sent yet."""
PEER_SHARE = 1 / 2
"""Of these requests and bytes, that one peer may have. One request alone may have more bytes."""
NETWORK_SHARE = 3 / 4
"""The same of all peers of one network."""
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
    """That wait, are computed, or are answered and not sent yet."""
    request_bytes: int = 0
    asked: bool = False
    """Whether it has ever asked for something."""
    turn: trio.Lock = field(default_factory=trio.Lock)
    """Its answers are sent one after another."""

    @property
    def share(self) -> SessionShare:
        return SessionShare(
            session=self.session,
            peer=self.channel.peer,
            host=self.channel.host,
            stepped=self.asked,
            computing=self.requests > 0,
            since=self.used,
        )


@dataclass
class GraphSessions:
    """The open sessions of one node."""

    most: int
    _sessions: dict[SessionId, GraphSession] = field(default_factory=dict[SessionId, GraphSession])
    _busy: set[GraphSession] = field(default_factory=set[GraphSession])
    """Those with requests, also when they are closed: what was begun is held until it is over."""

    def __len__(self) -> int:
        return len(self._sessions)

    @property
    def requests(self) -> int:
        """Of all sessions, that wait, are computed, or are answered and not sent yet."""
        return sum(one.requests for one in self._busy)

    @property
    def request_bytes(self) -> int:
        """Of these requests, or of their answers."""
        return sum(one.request_bytes for one in self._busy)

    @property
    def free(self) -> int:
        """Requests that are still taken."""
        return MAX_REQUESTS - self.requests

    def open(
        self, session: SessionId, channel: Channel, span: Span, now: float
    ) -> tuple[GraphSession, list[GraphSession]]:
        """A new session, and those that have given their place to it.

        Raises:
            Busy: every place is taken, by others who have no more than their share.
            NotAllowed: the session is open already.
        """
        if session in self._sessions:
            raise NotAllowed("a session of this id is open already")
        held = [one.share for one in self._sessions.values()]
        ended = make_place(held, Asker(channel.peer, channel.host), places=self.most, now=now)
        gone = [self._sessions.pop(one) for one in ended]
        opened = self._sessions[session] = GraphSession(session, channel, span, now)
        return opened, gone

    def get(self, session: SessionId, channel: Channel) -> GraphSession | None:
        """An open session, for the channel that has opened it."""
        found = self._sessions.get(session)
        return found if found is not None and found.channel is channel else None

    def begin(self, session: GraphSession, size: int, now: float) -> None:
        """Take one more request of ``size`` bytes.

        Raises:
            Busy: this session, its peer, its network, or all together, have as many as are taken.
        """
        if session.requests >= PER_SESSION:
            raise Busy("too many requests wait here", retry_after_s=RETRY_AFTER_S)
        for group, share in self._groups(session):
            if sum(one.requests for one in group) >= share * MAX_REQUESTS:
                raise Busy("too many requests wait here", retry_after_s=RETRY_AFTER_S)
            _check_room(_held(group), size, share)
        session.requests += 1
        session.request_bytes += size
        session.used, session.asked = now, True
        self._busy.add(session)

    def answered(self, session: GraphSession, size: int, made: int) -> None:
        """A request of ``size`` bytes has become an answer of ``made`` bytes.

        Raises:
            Busy: too much is kept for those who do not read their answers.
        """
        for group, share in self._groups(session) if made > size else ():
            _check_room(_held(group) - size, made, share)
        session.request_bytes += made - size

    def end(self, session: GraphSession, size: int, now: float) -> None:
        """A request, or its answer, of ``size`` bytes is over: it was sent, or nobody wants it any more."""
        session.requests -= 1
        session.request_bytes -= size
        session.used = now
        if not session.requests:
            self._busy.discard(session)

    def owed(self, channel: Channel) -> int:
        """Bytes of the requests of a channel, or of their answers."""
        return sum(one.request_bytes for one in self._busy if one.channel is channel)

    def _groups(self, session: GraphSession) -> list[tuple[list[GraphSession], float]]:
        """Those with requests that a session has to share with, and how much of all they may have."""
        peer, network = session.channel.peer, network_of(session.channel.host)
        same_peer = [one for one in self._busy if one.channel.peer == peer]
        same_network = [one for one in self._busy if network_of(one.channel.host) == network]
        return [(same_peer, PEER_SHARE), (same_network, NETWORK_SHARE), (list(self._busy), 1.0)]

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


def _held(group: Sequence[GraphSession]) -> int:
    return sum(one.request_bytes for one in group)


def _check_room(others: int, size: int, share: float) -> None:
    """Raises Busy: a group would have more bytes than its share, and not for one request alone."""
    if others and others + size > share * MAX_REQUEST_BYTES:
        raise Busy("the requests that wait here are too large together", retry_after_s=RETRY_AFTER_S)

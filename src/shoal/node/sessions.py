"""The sessions at a node: who has which, what each holds, and which end where others want their room.

What is decided here is decided in :mod:`shoal.node.fair_share`.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import trio

from shoal.errors import Busy, NotAllowed, ShoalError, UnknownSession
from shoal.executor.engine import Engine
from shoal.executor.pages import PAGE, pages_for
from shoal.metrics.logs import about
from shoal.net.channel import Channel
from shoal.node.fair_share import Asker, SessionShare, check_fits, make_place, make_room, offered
from shoal.node.hop import Hop
from shoal.node.kept_caches import SHARED_PART, FoundCache, KeptCaches, shared_tokens
from shoal.types import PeerId, SessionId
from shoal.wire.messages import Open

SENDERS_KEPT = 4096

log = logging.getLogger(__name__)


@dataclass(eq=False)
class Opening:
    """A session that is being opened: its client may still think better of it."""

    session: SessionId
    client: Channel
    since: float = field(default_factory=trio.current_time)
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)
    pushed_out: bool = False
    """Whether others want its place."""


class Sessions:
    """All sessions of a node, open or about to be.

    Args:
        places: how many there may be.
        unused: told of an engine on which the last session has ended.
    """

    def __init__(self, places: int, unused: Callable[[Engine], None]) -> None:
        self._places = places
        self._unused = unused
        self._hops: dict[SessionId, Hop] = {}
        self._opening: dict[SessionId, Opening] = {}
        self._using: dict[Engine, int] = {}  # sessions that are open or about to be
        self._freed = trio.Event()
        self.kept = KeptCaches()
        """What sessions that are over have left."""
        self._senders: OrderedDict[PeerId, None] = OrderedDict()  # whose steps sessions here take, or took

    def __len__(self) -> int:
        """How many are open."""
        return len(self._hops)

    def __iter__(self) -> Iterator[Hop]:
        """Those that are open."""
        return iter(list(self._hops.values()))

    @property
    def places(self) -> tuple[int, int]:
        """How many more there may be, open or about to be, and how many in all."""
        return self._places - len(self._hops) - len(self._opening), self._places

    def get(self, session: SessionId) -> Hop | None:
        """An open session."""
        return self._hops.get(session)

    def free(self, engine: Engine) -> int:
        """Tokens of KV that no session holds: who needs those of what is kept has them at once."""
        return engine.tokens_free + self.kept.held(engine)

    def offered(self, engine: Engine) -> int:
        """Tokens of KV that a newcomer would be let have."""
        return offered(self._held(engine), total=engine.tokens, now=trio.current_time())

    def awaited(self, now: float) -> int:
        """How many are in use that somebody waits for."""
        return sum(not (hop.opened.background or _share(hop).quiet(now)) for hop in self)

    def begin(self, session: SessionId, client: Channel, engine: Engine, tokens: int) -> Opening:
        """Take note of a session that is to be opened, if need be in the place of another.

        Raises:
            NotAllowed: it is here already.
            Busy: there is no place, or would be no room for its ``tokens`` tokens.
        """
        if session in self._hops.keys() | self._opening.keys():
            raise NotAllowed("a session of this id is open already")
        asker, now = Asker(client.peer, client.host), trio.current_time()
        # First: for one that would find no room, nobody is pushed out.
        check_fits(self._held(engine), asker, tokens, total=engine.tokens, now=now)
        for other in make_place(self._held(), asker, places=self._places, now=now):
            self._push_out(other, "its place")
        opening = self._opening[session] = Opening(session, client)
        return opening

    def began(self, opening: Opening) -> None:
        """It is open now, or will not be."""
        if self._opening.get(opening.session) is opening:
            del self._opening[opening.session]

    def add(self, hop: Hop) -> None:
        """A session is open."""
        self._hops[hop.session] = hop
        self.expect(hop.sender)

    def grow(self, hop: Hop, tokens: int) -> None:
        """Let a session have ``tokens`` tokens of KV, if need be those of others.

        Raises:
            Busy: there is no room for it.
        """
        tokens = PAGE * pages_for(tokens)
        more, engine = tokens - hop.held, hop.engine
        self.kept.make_room(engine, more)
        if more > engine.tokens_free:
            asker = Asker(hop.client.peer, hop.client.host, hop.session)
            now = trio.current_time()
            for other in make_room(self._held(engine), asker, more, total=engine.tokens, now=now):
                self._push_out(other, "its KV")
        if more > 0:
            engine.grow(hop.session, tokens)
            hop.held = tokens

    def forget(self, hop: Hop) -> None:
        """A session is over; one that is over already is no error."""
        if self._hops.get(hop.session) is hop:
            del self._hops[hop.session]
            hop.forget()
            if (kept := hop.kept()) is not None:
                self.kept.add(kept)
            hop.engine.close(hop.session)
            self.unuse(hop.engine)

    def take_kept(self, engine: Engine, opened: Open) -> FoundCache | None:
        """What an earlier session has left, or one that waits with it, for one that is to be opened.

        A session that waits is ended by it, the one that has most and only where nothing that is kept has as
        much: its client has said that others may go on with its KV.
        """
        if not opened.caches:
            return None
        now = trio.current_time()
        waiting = [
            (shared, hop)
            for hop in self
            if hop.names and hop.engine is engine and hop.queue.idle
            if (shared := shared_tokens(hop.names, hop.opened, opened)) * SHARED_PART >= hop.queue.length
        ]
        shared, hop = max(waiting, key=lambda each: each[0], default=(0, None))
        found = self.kept.find(engine, opened, now)
        if hop is not None and shared > (found.tokens if found is not None else 0):
            hop.fail(None, UnknownSession("its KV has gone to a later session of the same conversation"))
            hop.end()
            self.forget(hop)
            found = self.kept.find(engine, opened, now)  # what it has just left
        if found is not None:
            self.kept.take(found)
        return found

    def close(self, channel: Channel, session: SessionId) -> None:
        """End a session. Only the channel that opened it, or is about to, may."""
        hop, opening = self._hops.get(session), self._opening.get(session)
        if hop is not None and hop.client is channel:
            hop.end()
        elif opening is not None and opening.client is channel:
            opening.scope.cancel()

    def lost(self, channel: Channel, reason: str) -> None:
        """A channel has ended: so do its client's sessions, and others have no way onward."""
        for opening in self._opening.values():
            if opening.client is channel:
                opening.scope.cancel()
        for hop in self:
            if hop.client is channel:
                hop.end()
            else:
                hop.lost_next(channel, reason)

    def holds(self, channel: Channel) -> bool:
        """Whether a session needs it: to its client, to its next hop, or from the one before."""
        hops = self._hops.values()
        return any(channel in (hop.client, hop.next) or channel.peer == hop.sender for hop in hops)

    def knows(self, peer: PeerId) -> bool:
        """Whether a session here takes this peer's steps, or took them lately."""
        return peer in self._senders or any(hop.sender == peer for hop in self._hops.values())

    def expect(self, sender: PeerId) -> None:
        """Let this peer send as much as steps need."""
        self._senders[sender] = None
        self._senders.move_to_end(sender)
        # Remembered beyond the session's end, as its last steps may still be on their way.
        while len(self._senders) > SENDERS_KEPT:
            self._senders.popitem(last=False)

    def use(self, engine: Engine) -> None:
        """A session is about to be open on ``engine``."""
        self._using[engine] = self._using.get(engine, 0) + 1

    def unuse(self, engine: Engine) -> None:
        """One is no longer."""
        self._using[engine] -= 1
        if not self._using[engine]:
            del self._using[engine]
            self._unused(engine)
            self._freed.set()
            self._freed = trio.Event()

    async def wait_unused(self, engine: Engine) -> None:
        """Wait until no session is open on ``engine``."""
        while engine in self._using:
            await self._freed.wait()
        self.kept.clear(engine)

    async def wait_idle(self) -> None:
        """Wait until no session is open."""
        while self._using:
            await self._freed.wait()

    def _held(self, engine: Engine | None = None) -> list[SessionShare]:
        """What each session holds: on one engine, or all that are open or about to be."""
        held = [_share(hop) for hop in self if engine is None or hop.engine is engine]
        if engine is None:
            held += [
                SessionShare(session=o.session, peer=o.client.peer, host=o.client.host, since=o.since)
                for o in self._opening.values()
            ]
        return held

    def hand_over(self, session: SessionId, why: str) -> None:
        """End a session here, so that its client goes on with it elsewhere."""
        hop = self._hops.get(session)
        if hop is not None:
            self._turn_away(hop, f"the session has ended here: {why}")

    def _turn_away(self, hop: Hop, why: str) -> None:
        log.info("%s", why, extra=about(hop.client.peer, hop.session, hop.trace))
        hop.names = ()
        error: ShoalError = Busy(why, check="send the request again")
        hop.fail(None, error)
        hop.end()
        # Now, and not when its task has ended: whoever pushed it out needs the room at once.
        self.forget(hop)

    def _push_out(self, session: SessionId, what: str) -> None:
        """End a session, so that its room is free at once."""
        hop, opening = self._hops.get(session), self._opening.pop(session, None)
        if hop is not None:
            self._turn_away(hop, f"the session has ended: others here want {what}")
        elif opening is not None:
            # Its task tells the client: the answer to an Open is a refusal, not the failure of a session.
            opening.pushed_out = True
            opening.scope.cancel()


def _share(hop: Hop) -> SessionShare:
    return SessionShare(
        session=hop.session,
        peer=hop.client.peer,
        host=hop.client.host,
        tokens=hop.held,
        limit=hop.opened.tokens,
        stepped=hop.held > 0,
        computing=hop.queue.computing,
        since=hop.queue.since,
        pause_s=hop.queue.pause_s,
    )

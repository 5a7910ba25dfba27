"""A relay: hands calls on to peers that hold a place here, and joins two connections into a circuit.

It listens on the direct carrier's port and passes bytes on from one TCP connection to another. What they are
it cannot know: Noise runs between the two ends. Whoever asks has shown its key, and in a private swarm that
it has the secret; what each may have is bounded by :class:`shoal.net.reach.circuits.RelayLimits`.

py-libp2p 0.8 has circuit relay v2. It joins streams inside of yamux inside of Noise, with another yamux and
Noise within; keeps circuits by their source alone, so that a peer's second one ends with its first; looks at
the time only when bytes come, so that a silent circuit never ends; and has no bound by network or on calls.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import NamedTuple

import trio

from shoal.errors import Busy, ChannelClosed, RemoteProtocolError, ShoalError
from shoal.net.addresses import host_and_port, version_of
from shoal.net.fair_rate import FairRate
from shoal.net.handshake_backlog import network_of
from shoal.net.network import Pipe
from shoal.net.reach.circuits import Circuits, RelayLimits
from shoal.net.reach.control import (
    Call,
    CallAnswer,
    ControlLink,
    ControlMessage,
    RelayRefusal,
    Reserve,
    Reserved,
    Welcome,
)
from shoal.types import PeerId

READ = 1 << 18
CLOSED_WITHIN_S = 2.0
RETURNS_WITHIN_S = 1.5
"""How long calls wait for a peer whose connection broke before it answered them. Where its router has
forgotten that, its dial anew, from the same port, is what breaks it here; its next ``Reserve`` comes soon."""

log = logging.getLogger(__name__)

Stream = trio.abc.HalfCloseableStream


class _HandedOn(NamedTuple):
    """A call that was handed on, and has no answer yet."""

    caller: _Session
    number: int
    """By which the caller knows it."""
    until: float
    said: Call
    """As it was handed on."""

    @property
    def token(self) -> bytes:
        """Of the circuit that was granted for it; empty for a call to meet."""
        return self.said.token if self.said.kind == "relay" else b""


@dataclass(eq=False)
class _Session:
    """A control connection of a peer to us."""

    link: ControlLink
    seen: str
    network: str
    calls: dict[int, _HandedOn] = field(default_factory=dict[int, _HandedOn])
    """Calls that were handed on to this peer."""
    holds_place: bool = False
    opened_at: float = field(default_factory=trio.current_time)
    heard_at: float = field(default_factory=trio.current_time)
    """When its peer last said something."""
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)
    """Cancelled where it makes room for others."""
    emptied: trio.Event = field(default_factory=trio.Event)
    """Set once its calls wait for its peer's next connection no more, as that has taken them."""

    def drop_late(self, now: float) -> None:
        """Forget calls that were not answered in time."""
        for late in [number for number, call in self.calls.items() if call.until <= now]:
            del self.calls[late]


class Relay:
    """One peer's relay.

    Args:
        offered: whether places are given now: a peer behind a router of its own, or one whose user does not
            want that, tells others only how it sees them.
    """

    def __init__(self, offered: Callable[[], bool], limits: RelayLimits | None = None) -> None:
        self._offered = offered
        self._limits = limits or RelayLimits()
        self._sessions: set[_Session] = set()
        self._broken: set[_Session] = set()
        """Connections that broke with calls that their peers had not answered, for ``RETURNS_WITHIN_S``."""
        self._reserved: dict[PeerId, _Session] = {}
        self._circuits = Circuits(self._limits)
        self._rate = FairRate(self._limits.calls_per_s, self._limits.calls_at_once)
        self._first: dict[bytes, tuple[Stream, trio.Event]] = {}
        """Of circuits of which one end has come: its connection, and what is set once it is taken or given
        up."""
        self._number = 0
        self.relayed = 0
        """Bytes that circuits have passed on."""

    @property
    def circuits(self) -> int:
        """Circuits that are granted or joined now."""
        return len(self._circuits)

    @property
    def reservations(self) -> int:
        """Peers that hold a place."""
        return len(self._reserved)

    async def serve(self, pipe: Pipe, seen: str) -> None:
        """Serve one control connection until it ends; then it is closed.

        Args:
            seen: the multiaddr that the peer comes from.
        """
        host = (host_and_port(seen) or ("", 0))[0]
        session = _Session(ControlLink(pipe), seen, network_of(host))
        broke = False
        try:
            if self._has_room(session):
                self._sessions.add(session)
                with session.scope:
                    await self._serve(session)
        except (ChannelClosed, RemoteProtocolError) as error:
            log.debug("%s at the relay: %s", pipe.peer, error.message)
            broke = isinstance(error, ChannelClosed)
        finally:
            if session not in self._broken:
                self._drop(session, broke=broke)
            with trio.move_on_after(CLOSED_WITHIN_S, shield=True):
                await session.link.aclose()
        await self._await_return(session)

    async def _serve(self, session: _Session) -> None:
        errors: list[ShoalError] = []
        async with trio.open_nursery() as nursery:

            async def pump() -> None:
                try:
                    await session.link.pump()
                except ChannelClosed as error:
                    errors.append(error)
                    nursery.cancel_scope.cancel()

            nursery.start_soon(pump)
            try:
                session.link.send(Welcome(session.seen, self._offered()))
                async for message in session.link.messages():
                    self._take(session, message)
            except (ChannelClosed, RemoteProtocolError) as error:
                errors.append(error)
            nursery.cancel_scope.cancel()
        for error in errors:
            raise error

    def _has_room(self, new: _Session) -> bool:
        limits = self._limits
        theirs = [s for s in self._sessions if s.link.peer == new.link.peer]
        # The newest is alive. The peer's router may have forgotten others, which lie here for a minute.
        spare = theirs if len(theirs) >= limits.sessions_per_peer else []
        silent = min(spare, key=lambda session: session.heard_at, default=None)
        nearby = sum(s.network == new.network for s in self._sessions if s is not silent)
        if nearby >= limits.sessions_per_network:
            return False
        if silent is not None:
            self._hang_up(silent, broke=True)  # calls to it are handed on over the next
        return len(self._sessions) < limits.sessions or self._make_room(new, self._sessions)

    def _make_room(self, new: _Session, among: Collection[_Session]) -> bool:
        """Hang up on one of the network that has most of what is full, if ``new``'s has clearly less of it.

        So a few networks full of keys do not keep all others out. Who holds no place goes first, and of those
        who has come last.
        """
        counts = Counter(session.network for session in among)
        crowded, most = counts.most_common(1)[0]
        if most <= counts[new.network] + 1:
            return False
        theirs = [session for session in among if session.network == crowded]
        least = max(theirs, key=lambda session: (not session.holds_place, session.opened_at))
        self._hang_up(least, broke=False)
        return True

    def _hang_up(self, session: _Session, *, broke: bool) -> None:
        """End a session, as one that ``broke`` or one whose peer is not to return."""
        self._drop(session, broke=broke)
        session.scope.cancel()

    def _sessions_of(self, peer: PeerId) -> list[_Session]:
        """Those of one peer, and those of it that have just broken."""
        return [s for s in (*self._sessions, *self._broken) if s.link.peer == peer]

    def _drop(self, session: _Session, *, broke: bool) -> None:
        peer = session.link.peer
        self._sessions.discard(session)
        if self._reserved.get(peer) is session:
            del self._reserved[peer]
            others = (s for s in self._sessions if s.link.peer == peer and s.holds_place)
            for other in others:  # the peer's place is its, over whichever connection
                self._reserved[peer] = other
        for call in (c for s in (*self._sessions, *self._broken) for c in s.calls.values()):
            if call.caller is session:
                self._withdraw(call.token)
        elsewhere = {number for other in self._sessions_of(peer) for number in other.calls}
        for number in session.calls.keys() & elsewhere:
            del session.calls[number]  # it was handed on again
        awaited = any(call.until > trio.current_time() for call in session.calls.values())
        if broke and awaited and len(self._broken) < self._limits.reservations:
            self._broken.add(session)
        else:
            self._refuse_all(session)

    async def _await_return(self, session: _Session) -> None:
        """Keep the calls of a connection that broke for the peer's next one, and then refuse them."""
        if session not in self._broken:
            return
        try:
            with trio.move_on_after(RETURNS_WITHIN_S):
                await session.emptied.wait()
        finally:
            self._broken.discard(session)
            self._refuse_all(session)

    def _refuse_all(self, session: _Session) -> None:
        """The calls to a peer that has left."""
        for call in session.calls.values():
            self._withdraw(call.token)
            self._refuse(call.caller, call.number, "the peer has left")
        session.calls.clear()

    def _take(self, session: _Session, message: ControlMessage) -> None:
        """One message. Raises RemoteProtocolError: it is none that a peer sends a relay."""
        session.heard_at = trio.current_time()
        match message:
            case Reserve():
                self._reserve(session)
            case Call():
                self._call(session, message)
            case CallAnswer(call=call):
                self._bring_back(session, call, CallAnswer(0, self._seen_at(session, message.addresses)))
            case RelayRefusal(call=call):
                self._bring_back(session, call, message)
            case _:
                raise RemoteProtocolError(f"a {type(message).__name__} is said by relays alone")

    def _reserve(self, session: _Session) -> None:
        peer = session.link.peer
        full = peer not in self._reserved and len(self._reserved) >= self._limits.reservations
        if not self._offered():
            session.link.send(RelayRefusal(0, "this peer is no relay"))
        elif full and not self._make_room(session, self._reserved.values()):
            session.link.send(RelayRefusal(0, "all places are taken"))
        else:
            # The newest connection of a peer is the one that is alive.
            self._reserved[peer] = session
            session.link.send(Reserved())
            if not session.holds_place:
                session.holds_place = True
                self._hand_on_again(session)

    def _hand_on_again(self, session: _Session) -> None:
        """Calls that wait for a peer's answer, over the connection that it has just made: its router may have
        forgotten the one before."""
        now, room = trio.current_time(), self._limits.calls_waiting
        for other in self._sessions_of(session.link.peer):
            for number, call in other.calls.items() if other is not session else ():
                if call.until > now and call.caller in self._sessions and len(session.calls) < room:
                    session.calls.setdefault(number, call)  # the first answer counts
            if other in self._broken:
                for number in session.calls:
                    other.calls.pop(number, None)
                other.emptied.set()
        for call in session.calls.values():
            session.link.send(call.said)

    def _call(self, session: _Session, call: Call) -> None:
        peer, now = PeerId(call.peer), trio.current_time()
        target = self._reserved.get(peer) or next((s for s in self._broken if s.link.peer == peer), None)
        waiting = {number: c for s in (*self._sessions, *self._broken) for number, c in s.calls.items()}
        open_calls = Counter(c.caller for c in waiting.values() if c.until > now)
        if not self._offered() or target is None:
            session.link.send(RelayRefusal(call.call, "the peer holds no place here"))
        elif target is session or target.link.peer == session.link.peer:
            session.link.send(RelayRefusal(call.call, "a call to oneself"))
        elif open_calls[session] >= self._limits.calls_open or not self._rate.take(session.link.peer, now):
            session.link.send(RelayRefusal(call.call, "too many calls"))
        elif not self._may_wait(session, target, now):
            session.link.send(RelayRefusal(call.call, "the peer has too many calls to answer"))
        else:
            self._hand_on(session, target, call, now)

    def _may_wait(self, session: _Session, target: _Session, now: float) -> bool:
        """Whether one more call may wait for an answer of ``target``."""
        target.drop_late(now)
        nearby = sum(call.caller.network == session.network for call in target.calls.values())
        limits = self._limits
        return len(target.calls) < limits.calls_waiting and nearby < limits.calls_waiting_per_network

    def _hand_on(self, session: _Session, target: _Session, call: Call, now: float) -> None:
        caller = session.link.peer
        try:
            if call.kind == "relay":
                networks = frozenset((session.network, target.network))
                self._circuits.grant(call.token, caller, target.link.peer, now, networks)
        except (Busy, ChannelClosed) as error:
            session.link.send(RelayRefusal(call.call, error.message))
            return
        self._number += 1
        addresses = self._seen_at(session, call.addresses)
        said = Call(self._number, caller, call.kind, call.token, addresses, call.nat)
        handed = target.calls[said.call] = _HandedOn(session, call.call, now + self._limits.join_s, said)
        try:
            if target not in self._broken:
                target.link.send(said)
        except ChannelClosed:
            del target.calls[said.call]
            self._withdraw(handed.token)
            self._refuse(session, call.call, "the peer does not answer")

    def _bring_back(self, session: _Session, number: int, said: CallAnswer | RelayRefusal) -> None:
        found = session.calls.get(number)
        if found is None:
            return  # too late, or to a call that nobody has made
        for one in self._sessions_of(session.link.peer):
            one.calls.pop(number, None)
        if isinstance(said, RelayRefusal):
            self._withdraw(found.token)
            self._refuse(found.caller, found.number, said.why)
            return
        try:
            found.caller.link.send(CallAnswer(found.number, said.addresses))
        except ChannelClosed as error:
            log.debug("an answer is lost: %s", error.message)

    def _withdraw(self, token: bytes) -> None:
        """Nobody comes any more with the token of a circuit; an end that has come already is hung up on."""
        if token:
            self._circuits.withdraw(token)
            first = self._first.pop(token, None)
            if first is not None:
                first[1].set()

    def _refuse(self, session: _Session, number: int, why: str) -> None:
        try:
            session.link.send(RelayRefusal(number, why))
        except ChannelClosed as error:
            log.debug("a refusal is lost: %s", error.message)

    def _seen_at(self, session: _Session, said: tuple[str, ...]) -> tuple[str, ...]:
        """Where a peer may be dialled: as we see it, in either IP version, and what it says of the same host.

        Never at another host: whoever answers a call would have the caller knock there.
        """
        peer, version = session.link.peer, version_of(session.seen)
        others = [s.seen for s in self._sessions if s.link.peer == peer and version_of(s.seen) != version]
        seen = (session.seen, *others[-1:])
        hosts = {target[0] for a in seen if (target := host_and_port(a)) is not None}
        same = [a for a in said if (target := host_and_port(a)) is not None and target[0] in hosts]
        return tuple(dict.fromkeys((*seen, *same)))[:4]

    async def join(self, token: bytes, stream: Stream) -> None:
        """Take one end of a circuit; returns when the circuit has ended, and the connection is closed."""
        try:
            if not self._circuits.granted(token, trio.current_time()):
                return
            first = self._first.pop(token, None)
            if first is None:
                await self._await_other(token, stream)
            else:
                await self._pass_on(token, first, stream)
        finally:
            await trio.aclose_forcefully(stream)

    async def _await_other(self, token: bytes, stream: Stream) -> None:
        done = trio.Event()
        mine = self._first[token] = (stream, done)
        with trio.move_on_after(self._limits.join_s):
            await done.wait()
        if self._first.get(token) is mine:
            del self._first[token]
            self._circuits.end(token)
        else:
            await done.wait()  # the other end's task passes on what comes here

    async def _pass_on(self, token: bytes, first: tuple[Stream, trio.Event], second: Stream) -> None:
        try:
            if self._circuits.join(token, trio.current_time()):
                await self._splice(first[0], second)
        finally:
            self._circuits.end(token)
            first[1].set()

    async def _splice(self, one: Stream, other: Stream) -> None:
        """Pass bytes on both ways until both have ended, or the circuit's time or bytes are used up."""
        limits = self._limits
        ends_at = trio.current_time() + limits.circuit_s
        left, idle_s = limits.circuit_bytes, limits.idle_s
        with trio.CancelScope(deadline=trio.current_time() + limits.idle_s) as circuit:

            async def pass_on(source: Stream, sink: Stream) -> None:
                nonlocal left, idle_s
                try:
                    while data := await source.receive_some(READ):
                        left -= len(data)
                        self.relayed += len(data)
                        circuit.deadline = min(ends_at, trio.current_time() + idle_s)
                        if left < 0:
                            circuit.cancel()
                        await sink.send_all(data)
                    # Whoever has ended its side may be gone: the other has a moment to end its own.
                    idle_s = limits.ending_s
                    circuit.deadline = min(circuit.deadline, trio.current_time() + idle_s)
                    await sink.send_eof()
                except (trio.BrokenResourceError, trio.ClosedResourceError):
                    circuit.cancel()

            async with trio.open_nursery() as nursery:
                nursery.start_soon(pass_on, one, other)
                nursery.start_soon(pass_on, other, one)

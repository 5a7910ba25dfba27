"""Reaching a peer that holds a place at a relay, and being reached so: calls made, and calls answered.

A call to ``meet`` has both dial each other (:mod:`.punch`); one to ``relay`` joins them in a circuit. Either
way the caller is the initiator of the handshake, and what comes of it is a pipe like any other.
"""

from __future__ import annotations

import logging
import math
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from functools import partial

import trio

from shoal.errors import Busy, ChannelClosed
from shoal.net.addresses import to_multiaddr, versions_of
from shoal.net.carriers.direct import DirectCarrier
from shoal.net.carriers.direct_pipe import DirectPipe
from shoal.net.carriers.punch import Meeting
from shoal.net.dial_budget import BURST, EVERY_S, DialBudget
from shoal.net.dialable import LocalNetworks
from shoal.net.fair_rate import FairRate
from shoal.net.handshakes import HANDSHAKE_WITHIN_S
from shoal.net.happy_eyeballs import first
from shoal.net.reach.control import Call
from shoal.net.reach.nat import may_meet
from shoal.net.reach.openings import ExpectedStreams, new_token, send_token
from shoal.net.reach.ports import dial_from
from shoal.net.reach.relay_session import RelayAddress, RelaySession
from shoal.net.reach.sessions import RelaySessions
from shoal.net.reach.ways import relays_of
from shoal.tasks import ends_alone
from shoal.types import NatKind, PeerAddress, PeerId, Way

ANSWERED_AT_ONCE = 32
"""Calls of others that are under way here; one more is refused."""
CALLER_BURST = 8
"""Calls of one peer over one relay that are answered at once; then one every ``CALLER_EVERY_S``."""
CALLER_EVERY_S = 4.0
RELAYS_KEPT = 64
CALLED_WITHIN_S = 5.0
OTHER_RELAY_S = 0.15
"""How much longer than the first of a peer's relays the others are waited for."""
SAME_PORT_AFTER_S = 150.0
PEERS_KEPT = 1024

log = logging.getLogger(__name__)


class Calls:
    """The calls of one peer, over whichever relays.

    Args:
        take: takes a pipe that came of somebody's call to us.
        nearby: the networks that we are on: where others may have us dial.
    """

    def __init__(
        self,
        carrier: DirectCarrier,
        take: Callable[[DirectPipe], Awaitable[None]],
        nearby: Callable[[], LocalNetworks],
    ) -> None:
        self.sessions = RelaySessions(carrier, self._called)
        self.expected = ExpectedStreams()
        self._carrier = carrier
        self._take = take
        self._nearby = nearby
        self._answering = 0
        self._budgets: OrderedDict[PeerId, FairRate] = OrderedDict()
        """By relay, for it says who calls, and from where: without a bound it could have us knock all day."""
        self._of_caller = DialBudget(CALLER_BURST, CALLER_EVERY_S)
        self._met_at: OrderedDict[PeerId, float] = OrderedDict()
        """When we last dialled a peer in a meeting."""
        self._nursery: trio.Nursery | None = None

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Answer calls until cancelled."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            await nursery.start(self.sessions.run)
            task_status.started()
            await trio.sleep_forever()

    async def meet(self, address: PeerAddress) -> DirectPipe:
        """A connection that the peer makes to us, or both at once.

        Raises:
            ChannelClosed: none of its relays brings us together, or the routers let nothing through.
        """
        relays = self._relays(address)
        await self._ask_all(relays)
        if self.nat_to(address) == "symmetric":
            raise ChannelClosed("our router gives every connection another port")
        # Over one session with each: the relay tells how it sees us in both IP versions.
        reached = {relay.peer: relay for relay in reversed(relays) if self.sessions.has(relay)}
        attempts = [partial(self._meet_over, relay, address) for relay in reversed(reached.values())]
        return await first(attempts, DirectPipe.aclose)

    def nat_to(self, address: PeerAddress) -> NatKind:
        """Our router's kind, as it matters to a peer: in the IP versions that both have."""
        versions = versions_of(address.direct)
        return self.sessions.nat_among(versions) if versions else self.sessions.nat

    async def _ask_all(self, relays: Sequence[RelayAddress]) -> None:
        """Have sessions with a peer's relays, of which two together tell what our router does."""

        async def ask(relay: RelayAddress, nursery: trio.Nursery) -> None:
            with suppress(ChannelClosed):  # the call says it
                await self.sessions.get(relay)
                nursery.cancel_scope.deadline = min(
                    nursery.cancel_scope.deadline, trio.current_time() + OTHER_RELAY_S
                )

        async with trio.open_nursery() as nursery:
            for relay in relays:
                nursery.start_soon(ask, relay, nursery)

    async def join(self, address: PeerAddress) -> DirectPipe:
        """A circuit over one of the peer's relays.

        Raises:
            ChannelClosed: none of them gives one.
        """
        attempts = [partial(self._join_over, relay, address.peer) for relay in self._relays(address)]
        return await first(attempts, DirectPipe.aclose)

    def _relays(self, address: PeerAddress) -> list[RelayAddress]:
        nearby = self._nearby()
        return [r for r in relays_of(address) if nearby.dialable(to_multiaddr(r.host, r.port))]

    async def _meet_over(self, relay: RelayAddress, address: PeerAddress) -> DirectPipe:
        peer, nat, token = address.peer, self.nat_to(address), new_token()
        # The peer's end is always the same. Routers keep a connection that has ended for minutes, and let no
        # other of the same two ends through; so the second has another port at our end.
        fresh = nat != "none" and trio.current_time() - self._met_at.get(peer, -math.inf) < SAME_PORT_AFTER_S
        session = await (self.sessions.get_fresh(relay) if fresh else self.sessions.get(relay))
        try:
            return await self._meet_in(session, peer, nat, token, () if fresh else self._seen())
        finally:
            if fresh:  # the connection that came of it keeps the port
                session.close()

    async def _meet_in(
        self, session: RelaySession, peer: PeerId, nat: NatKind, token: bytes, seen: tuple[str, ...]
    ) -> DirectPipe:
        if session.local is None and nat != "none":
            raise ChannelClosed("there is no port to be met at")
        ends = (*((session.local,) if session.local else ()), *self._carrier.ends)
        self._met_at[peer] = trio.current_time()
        self._met_at.move_to_end(peer)
        while len(self._met_at) > PEERS_KEPT:
            self._met_at.popitem(last=False)
        # Before the call: the peer dials us as soon as it has heard of it.
        with self.expected.expect(token) as arrivals:
            with trio.move_on_after(CALLED_WITHIN_S):
                answer = await session.call(peer, "meet", token, seen, nat)
                establish = partial(self._carrier.initiate, peer=peer, way=_way_met(nat))
                meeting = Meeting(ends, token, _bounded(establish), one_at_a_time=True)
                return await meeting.meet(self._where(session, answer.addresses), arrivals)
        raise ChannelClosed(f"{peer} does not answer over the relay {session.address.peer}")

    async def _join_over(self, relay: RelayAddress, peer: PeerId) -> DirectPipe:
        with trio.move_on_after(CALLED_WITHIN_S):
            token = await self._call_to_join(relay, peer)
            stream = await _leg(relay, token)
            return await self._carrier.initiate(stream, peer, "relayed")
        raise ChannelClosed(f"{peer} does not answer over the relay {relay.peer}")

    async def _call_to_join(self, relay: RelayAddress, peer: PeerId) -> bytes:
        """The token of the circuit that the relay and the peer agree to."""
        session, token = await self.sessions.get(relay), new_token()
        try:
            await session.call(peer, "relay", token, (), self.sessions.nat)
        except ChannelClosed:
            if not session.closed.is_set():
                raise
            # It was one that our router had forgotten, and nobody had noticed.
            session, token = await self.sessions.get(relay), new_token()
            await session.call(peer, "relay", token, (), self.sessions.nat)
        return token

    async def _called(self, session: RelaySession, call: Call) -> None:
        """A call to us: it is answered at once, and what it asks for is done by a task of its own."""
        try:
            self._ask_budget(session.address.peer, PeerId(call.peer))
        except Busy as error:
            session.refuse(call.call, error.message)
            return
        if self._nursery is None or self._answering >= ANSWERED_AT_ONCE:
            session.refuse(call.call, "too many calls are under way")
        elif call.kind == "meet" and not self._may_meet(call):
            session.refuse(call.call, "the routers between would let nothing through")
        else:
            self._answering += 1
            self._nursery.start_soon(self._answer_alone, session, call)

    def _may_meet(self, call: Call) -> bool:
        ours = self.sessions.nat_among(versions_of(call.addresses))
        return bool(self._carrier.ends) and may_meet(call.nat, ours)

    def _ask_budget(self, relay: PeerId, caller: PeerId) -> None:
        """Count a call. Raises Busy: there are too many of this caller, or over this relay."""
        now = trio.current_time()
        self._of_caller.ask(PeerId(f"{relay} {caller}"), now)
        budget = self._budgets.setdefault(relay, FairRate(1 / EVERY_S, BURST))
        self._budgets.move_to_end(relay)
        while len(self._budgets) > RELAYS_KEPT:
            self._budgets.popitem(last=False)
        if not budget.take(caller, now):
            raise Busy("this relay brings too many calls")

    async def _answer_alone(self, session: RelaySession, call: Call) -> None:
        with ends_alone(log, f"a call of {call.peer} over {session.address.peer}"):
            await self._answer(session, call)

    async def _answer(self, session: RelaySession, call: Call) -> None:
        try:
            pipe = await (self._met(session, call) if call.kind == "meet" else self._joined(session, call))
        except (ChannelClosed, OSError) as error:
            log.debug("a call of %s came to nothing: %s", call.peer, error)
            return
        finally:
            self._answering -= 1
        try:
            await self._take(pipe)
            await pipe.closed.wait()
        finally:
            await pipe.aclose()

    async def _met(self, session: RelaySession, call: Call) -> DirectPipe:
        establish = partial(self._carrier.respond, peer=PeerId(call.peer), way=_way_met(call.nat))
        meeting = Meeting(
            self._carrier.ends,
            call.token,
            _bounded(establish),
            one_at_a_time=False,
            open_door=call.nat == "none",
        )
        with self.expected.expect(call.token) as arrivals:
            session.answer(call.call, self._seen())
            return await meeting.meet(self._where(session, call.addresses), arrivals)

    async def _joined(self, session: RelaySession, call: Call) -> DirectPipe:
        session.answer(call.call, ())
        with trio.move_on_after(CALLED_WITHIN_S):
            stream = await _leg(session.address, call.token)
            return await self._carrier.respond(stream, PeerId(call.peer), "relayed")
        raise ChannelClosed(f"{call.peer} has not come to the relay")

    def _where(self, session: RelaySession, addresses: Sequence[str]) -> tuple[str, ...]:
        """Where a peer is met, of what a relay says of that."""
        relay = to_multiaddr(session.address.host, session.address.port)
        return self._nearby().told_by(relay, addresses)

    def _seen(self) -> tuple[str, ...]:
        """Where others may see us, beside where the relay of the call does."""
        believed = self.sessions.believed
        return ((believed,) if believed else ()) + self.sessions.open_addresses


def _way_met(caller: NatKind) -> Way:
    """What a connection is called that came of a meeting: one with no router before the caller is
    reversed."""
    return "reversed" if caller == "none" else "punched"


def _bounded(
    establish: Callable[[trio.SocketStream], Awaitable[DirectPipe]],
) -> Callable[[trio.SocketStream], Awaitable[DirectPipe]]:
    async def within(stream: trio.SocketStream) -> DirectPipe:
        with trio.move_on_after(HANDSHAKE_WITHIN_S):
            return await establish(stream)
        raise ChannelClosed("no handshake in time")

    return within


async def _leg(relay: RelayAddress, token: bytes) -> trio.SocketStream:
    """Our connection of a circuit.

    Raises:
        ChannelClosed: the relay does not answer.
    """
    try:
        stream = await dial_from(None, relay.host, relay.port)
    except OSError as error:
        raise ChannelClosed(f"the relay {relay.peer} does not answer ({error})") from error
    try:
        await send_token(stream, token)
    except BaseException:
        await trio.aclose_forcefully(stream)
        raise
    return stream

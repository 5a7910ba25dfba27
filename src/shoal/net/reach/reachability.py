"""How others reach this peer: what it announces of itself, and the places at relays that it holds for that.

A peer with a public address needs nothing of this and is a relay for others. One behind a router holds
places at two relays, whom it finds among the peers that it is connected to, and renews them.
"""

from __future__ import annotations

import logging
import math
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Annotated, TypeVar

import msgspec
import trio
from msgspec import Meta, Struct

from shoal.errors import ChannelClosed, DeadlineExceeded, RemoteProtocolError
from shoal.net.addresses import circuit_address, host_and_port, is_loopback, is_private, to_multiaddr
from shoal.net.dialable import LocalNetworks
from shoal.net.mapping.port_mapper import PortMapper
from shoal.net.network import ReachView
from shoal.net.reach.relay_session import RelayAddress
from shoal.net.reach.sessions import RelaySessions
from shoal.tasks import ends_alone
from shoal.types import PeerId

REACH_PROTOCOL = "/shoal/reach/1"
PLACES = 2
"""Relays at which a peer behind a router holds a place: one may die."""
OBSERVERS = 3
"""Peers that are asked how they see us: one more than must agree, as one may lie."""
LOOK_EVERY_S = 1.0
RESERVED_WITHIN_S = 4.0
ASKED_WITHIN_S = 4.0
ASKED_AGAIN_S = 30.0
"""When a peer that was no relay is asked again."""
RESERVED_AGAIN_S = 5.0
"""When a relay that gave us no place is asked again: often, for it may be our own way out that was gone."""
GIVEN_UP_AFTER = 5
"""Failures in a row, after which a relay is forgotten; while we are connected to it, it is asked anew whether
it is one."""
DOUBLED = 2
"""How often its rest doubles before."""
KNOWN_LIMIT = 64

log = logging.getLogger(__name__)

Ask = Callable[[PeerId], Awaitable[bytes]]
"""Asks a connected peer for its ``RelayOffer``. Raises ChannelClosed, DeadlineExceeded,
RemoteProtocolError."""


class RelayOffer(Struct, frozen=True, array_like=True):
    """What a peer answers on ``REACH_PROTOCOL``."""

    direct: Annotated[tuple[Annotated[str, Meta(max_length=256)], ...], Meta(max_length=16)]
    """The addresses of its direct carrier."""
    relays: bool


_Value = TypeVar("_Value")

_NEVER = (-math.inf, 0)

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(RelayOffer).decode


def encode_offer(offer: RelayOffer) -> bytes:
    return _encode(offer)


def decode_offer(data: bytes) -> RelayOffer:
    """Raises RemoteProtocolError: it is none."""
    try:
        return _decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise RemoteProtocolError(f"not an offer of a relay: {error}") from error


def is_public(own: Sequence[str]) -> bool:
    """Whether a peer with these addresses of its own can be dialled by everybody in its swarm.

    A swarm on loopback is one machine, where every peer can be.
    """
    hosts = [target[0] for a in own if (target := host_and_port(a)) is not None]
    return bool(hosts) and (any(not is_private(h) for h in hosts) or all(map(is_loopback, hosts)))


class Reachability:
    """One peer's. While ``run`` runs, it looks after its places; without, it can ask how it is seen.

    Args:
        own: the addresses of the direct carrier's port.
        connected: the peers that we hold a connection to.
    """

    def __init__(
        self,
        own: Sequence[str],
        sessions: RelaySessions,
        ask: Ask,
        connected: Callable[[], Sequence[PeerId]],
        nearby: Callable[[], LocalNetworks],
    ) -> None:
        self.own = tuple(own)
        self.public = is_public(own)
        self._sessions = sessions
        self._ask = ask
        self._connected = connected
        self._nearby = nearby
        self._known: OrderedDict[PeerId, RelayAddress] = OrderedDict()
        """Peers that are relays."""
        self._asked: OrderedDict[PeerId, float] = OrderedDict()
        """When peers were asked whether they are."""
        self._failed: OrderedDict[PeerId, tuple[float, int]] = OrderedDict()
        """When relays that we know last gave us no place, and how many times in a row."""
        self._changed = trio.Event()
        self.mapper: PortMapper | None = None
        """What asks our router for a public port, if anybody does."""

    @property
    def mapped(self) -> str | None:
        """The address that our router leads to us, once a peer outside has seen us come from its host.

        A router that lies, or one behind another, would have us announce somebody else's.
        """
        mapped = self.mapper.mapped if self.mapper else None
        seen = {(host_and_port(one.seen) or ("", 0))[0] for one in self._sessions.observations}
        return mapped.multiaddr if mapped and mapped.host in seen else None

    def addresses(self) -> tuple[str, ...]:
        """The direct addresses to announce: our interfaces', what our router gives us, and our places."""
        found = list(self.own)
        if self._sessions.nat == "cone" and self._sessions.believed:
            found.append(self._sessions.believed)
        if self.mapped:
            found.append(self.mapped)
        for session in self._sessions.all():
            if session.reserved:
                relay = to_multiaddr(session.address.host, session.address.port)
                found.append(circuit_address(relay, session.address.peer))
        return tuple(dict.fromkeys(found))

    def view(self) -> ReachView:
        """How this peer can be reached now."""
        relays = tuple(s.address.peer for s in self._sessions.all() if s.reserved)
        return ReachView(
            self._sessions.nat, self.public, self._sessions.believed or "", relays, self.mapped or ""
        )

    async def wait_changed(self) -> None:
        """Wait until there is something else to announce."""
        await self._changed.wait()

    async def run(self) -> None:
        """Look after our places until cancelled."""
        before = self.addresses()
        while True:
            if not self.public:
                await self._find_relays()
                await self._use_relays(PLACES)
            if self.addresses() != before:
                before = self.addresses()
                self._changed.set()
                self._changed = trio.Event()
            await trio.sleep(LOOK_EVERY_S)

    async def observe(self) -> None:
        """Ask the peers that we are connected to how they see us."""
        await self._find_relays()
        await self._use_relays(0)

    async def _find_relays(self) -> None:
        """Ask every peer that we are connected to whether it is a relay."""
        now = trio.current_time()
        async with trio.open_nursery() as nursery:
            for peer in self._connected():
                if peer not in self._known and now - self._asked.get(peer, -ASKED_AGAIN_S) >= ASKED_AGAIN_S:
                    _keep(self._asked, peer, now)
                    nursery.start_soon(self._alone, partial(self._learn, peer))

    async def _learn(self, peer: PeerId) -> None:
        try:
            with trio.fail_after(ASKED_WITHIN_S):
                offer = decode_offer(await self._ask(peer))
        except (ChannelClosed, DeadlineExceeded, RemoteProtocolError, trio.TooSlowError) as error:
            log.debug("%s does not say whether it is a relay: %r", peer, error)
            return
        public = [t for a in self._nearby().fit(offer.direct) if is_public([a]) and (t := host_and_port(a))]
        if offer.relays and public:
            _keep(self._known, peer, RelayAddress(peer, *public[0]))

    async def _use_relays(self, places: int) -> None:
        """Have so many places, and hear how enough of them see us."""
        held = {s.address.peer for s in self._sessions.all() if s.reserved}
        now = trio.current_time()
        # Those first that failed longest ago, or never: else a few that are gone would be all that is tried.
        waiting = [
            self._known[peer]
            for peer in sorted(self._known, key=lambda peer: self._failed.get(peer, _NEVER)[0])
            if peer not in held and self._rested(peer, now)
        ]
        lacking = places - len(held)
        observers = OBSERVERS - len(self._sessions.observations)
        async with trio.open_nursery() as nursery:
            for number, address in enumerate(waiting[: max(lacking, observers, 0)]):
                nursery.start_soon(self._alone, partial(self._use, address, number < lacking))

    async def _alone(self, task: Callable[[], Awaitable[None]]) -> None:
        with ends_alone(log, "the look for a relay"):
            await task()

    def _rested(self, peer: PeerId, now: float) -> bool:
        at, times = self._failed.get(peer, _NEVER)
        return now - at >= RESERVED_AGAIN_S * 2 ** min(max(0, times - 1), DOUBLED)

    async def _use(self, address: RelayAddress, reserve: bool) -> None:
        """Hear how a relay sees us, and hold a place there if that is wanted."""
        try:
            session = await self._sessions.get(address)
            if reserve:
                await session.reserve(RESERVED_WITHIN_S)
        except ChannelClosed as error:
            log.debug("%s", error.message)
            self._note_failure(address.peer)
        else:
            self._failed.pop(address.peer, None)

    def _note_failure(self, peer: PeerId) -> None:
        times = self._failed.get(peer, _NEVER)[1] + 1
        if times < GIVEN_UP_AFTER:
            _keep(self._failed, peer, (trio.current_time(), times))
        else:
            self._failed.pop(peer, None)
            self._known.pop(peer, None)
            _keep(self._asked, peer, trio.current_time())


def _keep(table: OrderedDict[PeerId, _Value], peer: PeerId, value: _Value) -> None:
    """Note something of a peer, and forget what was noted first where that is too much."""
    table[peer] = value
    table.move_to_end(peer)
    while len(table) > KNOWN_LIMIT:
        table.popitem(last=False)

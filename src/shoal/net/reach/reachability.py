"""How others reach this peer: what it announces of itself, and the places at relays that it holds for that.

A peer with public addresses in IPv4 and IPv6 needs nothing of this, and is a relay for others. Every other
one holds places at two relays, whom it finds among the peers that it is connected to, and renews them: one
behind a router at any; one that is public in one of the two at relays that have the other, so that peers that
have only that reach it.

A public address may lead to a peer and be on no interface of it: rented machines have a router of their own
before them, and homes forward ports. Nothing here can tell; the user says it, and is believed.

A public IPv6 address says less than an IPv4 one: most homes have some, and a firewall before them. So where a
machine has no public IPv4 address as well, its IPv6 address counts only once a peer from another network has
come in at the direct carrier's port, and for a while after the last one has.
"""

from __future__ import annotations

import logging
import math
from collections import Counter, OrderedDict
from collections.abc import Awaitable, Callable, Generator, Iterable, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Annotated, TypeVar

import msgspec
import trio
from msgspec import Meta, Struct

from shoal.errors import ChannelClosed, DeadlineExceeded, RemoteProtocolError
from shoal.net.addresses import (
    IPVersion,
    circuit_address,
    host_and_port,
    is_loopback,
    is_private,
    to_multiaddr,
    version_of,
    versions_of,
)
from shoal.net.dialable import LocalNetworks
from shoal.net.handshake_backlog import network_of
from shoal.net.mapping.port_mapper import PortMapper
from shoal.net.network import ReachView
from shoal.net.reach.known_relays import (
    PLACES,
    Networks,
    is_place_wanted,
    nearness,
    networks_of,
    one_too_many,
)
from shoal.net.reach.nat import is_confirmed
from shoal.net.reach.relay_session import RelayAddress, RelaySession
from shoal.net.reach.sessions import RelaySessions
from shoal.tasks import ends_alone
from shoal.types import PeerId

REACH_PROTOCOL = "/shoal/reach/1"
OBSERVERS = 3
"""Peers that are asked how they see us: one more than must agree, as one may lie."""
OPEN_FOR_S = 900.0
"""How long we count as public in IPv6 after the last peer from outside has come, or has hung up."""
LOOK_EVERY_S = 1.0
SLOW_S = 1.0
"""After so long a relay that has not answered holds up nobody: another is tried beside it."""
RESERVED_WITHIN_S = 4.0
ASKED_WITHIN_S = 4.0
ASKED_AGAIN_S = 30.0
"""When a peer that was no relay is asked again."""
ASKED_LIMIT = 1024
"""Peers of which that is remembered: more than we hold connections to, or all would be asked all the time."""
ASKED_AT_ONCE = 16
RESERVED_AGAIN_S = 5.0
"""When a relay that gave us no place is asked again: often, for it may be our own way out that was gone."""
GIVEN_UP_AFTER = 5
"""Failures in a row, after which a relay is forgotten; while we are connected to it, it is asked anew whether
it is one."""
DOUBLED = 2
"""How often its rest doubles before."""
KNOWN_LIMIT = 64
SIX: frozenset[IPVersion] = frozenset((6,))
BOTH: frozenset[IPVersion] = SIX | {4}

log = logging.getLogger(__name__)

Ask = Callable[[PeerId], Awaitable[bytes]]
"""Asks a connected peer for its ``RelayOffer``. Raises ChannelClosed, DeadlineExceeded,
RemoteProtocolError."""


class RelayOffer(Struct, frozen=True, array_like=True):
    """What a peer answers on ``REACH_PROTOCOL``."""

    direct: Annotated[tuple[Annotated[str, Meta(max_length=256)], ...], Meta(max_length=16)]
    """The addresses of its direct carrier."""
    relays: bool


_Item = TypeVar("_Item")
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
    hosts = _hosts(own)
    return bool(hosts) and (any(not is_private(h) for h in hosts) or all(map(is_loopback, hosts)))


def open_versions(own: Sequence[str]) -> frozenset[IPVersion]:
    """In which IP versions everybody can dial a peer with these addresses of its own, as far as they tell."""
    if all(is_loopback((host_and_port(a) or ("", 0))[0]) for a in own):
        return BOTH if own else frozenset()
    public = versions_of(a for a in own if is_public([a]))
    return public if 4 in public else frozenset()


class Reachability:
    """One peer's. While ``run`` runs, it looks after its places; without, it can ask how it is seen.

    Args:
        own: the addresses of the direct carrier's port.
        connected: the peers that we hold a connection to.
        forwarded: public addresses that lead to that port and are on no interface, as our user says.
    """

    def __init__(
        self,
        own: Sequence[str],
        sessions: RelaySessions,
        ask: Ask,
        connected: Callable[[], Sequence[PeerId]],
        nearby: Callable[[], LocalNetworks],
        forwarded: Sequence[str] = (),
    ) -> None:
        # Behind those of our interfaces, as what a router gives: so others know these for a home's.
        self.own = (*own, *forwarded)
        self._has_six = 6 in versions_of(a for a in self.own if is_public([a]))
        self._sessions = sessions
        sessions.open = self._sure = open_versions(own) | versions_of(forwarded)
        self._six_networks = {network_of(host) for host in _hosts(self.own) if ":" in host}
        self._inside = 0
        """Connections of peers from outside that have come in by IPv6 and last."""
        self._came_at = -math.inf
        """When the last of all such came, or ended."""
        self._ask = ask
        self._connected = connected
        self._nearby = nearby
        self._known: OrderedDict[PeerId, tuple[RelayAddress, ...]] = OrderedDict()
        """Peers that are relays, with an address of each IP version that they have."""
        self._asked: OrderedDict[PeerId, float] = OrderedDict()
        """When peers were asked whether they are."""
        self._failed: OrderedDict[RelayAddress, tuple[float, int]] = OrderedDict()
        """Where relays that we know last gave us no place, and how many times in a row."""
        self._asking = 0
        """Peers that are asked now."""
        self._trying: dict[RelayAddress, tuple[float, bool]] = {}
        """Relays that are tried now: since when, and whether for a place."""
        self._reserving: dict[PeerId, float] = {}
        """Those that are asked for a place and have not answered: since when."""
        self._places: frozenset[RelayAddress] = frozenset()
        """Where we held one when we last looked."""
        self._changed = trio.Event()
        self.mapper: PortMapper | None = None
        """What asks our router for a public port, if anybody does."""

    @property
    def public(self) -> bool:
        """Whether everybody who has the right IP version can dial us."""
        return bool(self._sessions.open)

    def note_arrival(self, host: str) -> None:
        """A peer at this address has dialled the direct carrier's port: in IPv6 no firewall keeps strangers
        out."""
        if self._has_six and self._is_outside(host):
            self._came_at = trio.current_time()
            self._sessions.open |= SIX

    @contextmanager
    def arrival(self, host: str) -> Generator[None]:
        """The same of one that stays for the block, as those do who hold a place here.

        A firewall may still know relays that we have dialled from that port ourselves: they tell nothing.
        """
        dialled = any(session.address.host == host for session in self._sessions.all())
        if dialled or not self._is_outside(host):
            yield
            return
        self.note_arrival(host)
        self._inside += 1
        try:
            yield
        finally:
            self._inside -= 1
            self.note_arrival(host)

    def _is_outside(self, host: str) -> bool:
        """Whether this is a public IPv6 address of another network than ours."""
        address = to_multiaddr(host, 1)
        here = self._nearby().on_interface(address) or network_of(host) in self._six_networks
        return version_of(address) == 6 and is_public([address]) and not here

    def _doubt_six(self) -> None:
        """A firewall may be there that was not, or we are in another network."""
        late = trio.current_time() - self._came_at > OPEN_FOR_S
        if late and not self._inside and self._came_at > -math.inf:
            self._came_at = -math.inf
            self._sessions.open -= SIX - self._sure

    @property
    def mapped(self) -> str | None:
        """The address that our router leads to us, once peers outside bear out that we come from its host.

        A router that lies, or one behind another, would have us announce somebody else's.
        """
        mapped = self.mapper.mapped if self.mapper else None
        return mapped.multiaddr if mapped and is_confirmed(mapped.host, self._sessions.observations) else None

    def addresses(self) -> tuple[str, ...]:
        """The direct addresses to announce: our interfaces', what our router gives us, and our places."""
        found = list(self.own)
        if self._sessions.nat_in(4) == "cone" and self._sessions.believed:
            found.append(self._sessions.believed)
        if self.mapped:
            found.append(self.mapped)
        for session in self._sessions.all():
            if session.reserved:
                # At all of the relay's addresses: who calls us may have another IP version than we.
                for relay in (session.address, *self._known.get(session.address.peer, ())):
                    found.append(circuit_address(to_multiaddr(relay.host, relay.port), relay.peer))
        return tuple(dict.fromkeys(found))

    def open_addresses(self) -> tuple[str, ...]:
        """Those of our addresses at which everybody can dial us: public ones first."""
        found = [a for a in self.own if version_of(a) in self._sessions.open]
        return tuple(sorted(found, key=lambda a: not is_public([a])))

    def view(self) -> ReachView:
        """How this peer can be reached now."""
        relays = tuple(dict.fromkeys(s.address.peer for s in self._sessions.all() if s.reserved))
        return ReachView(
            self._sessions.nat,
            self.public,
            self._sessions.believed or "",
            relays,
            self.mapped or "",
            "none" if not self._has_six else "open" if 6 in self._sessions.open else "closed",
        )

    async def wait_changed(self) -> None:
        """Wait until there is something else to announce."""
        await self._changed.wait()

    async def run(self) -> None:
        """Look after our places until cancelled."""
        before = self.addresses()
        # For as long as we run: nobody who does not answer holds up what others have said.
        async with trio.open_nursery() as attempts:
            while True:
                self._sessions.changed = trio.Event()
                self._doubt_six()
                if self._sessions.open != BOTH:
                    self._note_lost()
                    self._find_relays(attempts)
                    self._use_relays(attempts, PLACES, 0 if self.public else OBSERVERS)
                if self.addresses() != before:
                    before = self.addresses()
                    self._changed.set()
                    self._changed = trio.Event()
                with trio.move_on_after(LOOK_EVERY_S):
                    await self._sessions.changed.wait()

    async def observe(self) -> None:
        """Ask the peers that we are connected to how they see us."""
        async with trio.open_nursery() as attempts:
            self._find_relays(attempts)
        async with trio.open_nursery() as attempts:
            self._use_relays(attempts, 0, OBSERVERS)

    def _note_lost(self) -> None:
        """A place that is lost is taken again, but at another relay first, if there is one."""
        now = trio.current_time()
        held = frozenset(session.address for session in self._sessions.all() if session.reserved)
        for address in self._places - held:
            if address not in self._failed:
                _keep(self._failed, address, (now, 0))
        self._places = held

    def _find_relays(self, attempts: trio.Nursery) -> None:
        """Ask peers that we are connected to whether they are relays, some at a time."""
        now = trio.current_time()
        new = (peer for peer in self._connected() if peer not in self._known)
        due = [peer for peer in new if now - self._asked.get(peer, -math.inf) >= ASKED_AGAIN_S]
        # Those first who were never asked, or longest ago: who is silent holds up nobody else for long.
        due.sort(key=lambda peer: self._asked.get(peer, -math.inf))
        for peer in due[: ASKED_AT_ONCE - self._asking]:
            _keep(self._asked, peer, now, ASKED_LIMIT)
            self._asking += 1
            attempts.start_soon(self._alone, partial(self._learn, peer))

    async def _learn(self, peer: PeerId) -> None:
        try:
            with trio.fail_after(ASKED_WITHIN_S):
                offer = decode_offer(await self._ask(peer))
        except (ChannelClosed, DeadlineExceeded, RemoteProtocolError, trio.TooSlowError) as error:
            log.debug("%s does not say whether it is a relay: %r", peer, error)
            return
        finally:
            self._asking -= 1
        public = {
            version: RelayAddress(peer, *target)
            for a in reversed(self._nearby().fit(offer.direct))
            if is_public([a]) and (version := version_of(a)) and (target := host_and_port(a))
        }
        if offer.relays and public:
            self._know(peer, tuple(public.values()))
            self._sessions.changed.set()

    def _know(self, peer: PeerId, addresses: tuple[RelayAddress, ...]) -> None:
        self._known[peer] = addresses
        held = {session.address.peer for session in self._sessions.all() if session.reserved}
        while len(self._known) > KNOWN_LIMIT and (gone := one_too_many(self._known, held)):
            del self._known[gone]

    def _use_relays(self, attempts: trio.Nursery, places: int, observers: int) -> None:
        """Have so many places, and hear how so many observers see us in each IP version."""
        ours, now = versions_of(self.own), trio.current_time()
        held = {(s.address.peer, _version(s.address)) for s in self._sessions.all() if s.reserved}
        tried = [(a, place) for a, (since, place) in self._trying.items() if now - since < SLOW_S]
        taken = {peer for peer, _ in held} | {address.peer for address, place in tried if place}
        under_way = Counter(_version(address) for address, _ in tried)
        unheard = {v: observers - len(self._sessions.seen_in(v)) - under_way[v] for v in BOTH}
        waiting = {
            peer: [a for a in known if _version(a) in ours and self._rested(a, now)]
            for peer, known in self._known.items()
            if self._is_useful(known) or not places
        }
        networks = {peer: networks_of(self._known[peer]) for peer in waiting}
        placed = self._networks(taken)
        lost = {peer: any(map(self._is_lost, addresses)) for peer, addresses in waiting.items()}
        failed = {peer: self._last_failed(addresses) for peer, addresses in waiting.items()}
        while waiting:
            # Those first that are elsewhere, then those that failed longest ago, or never: else a few that
            # are gone would be all that is tried. One that has just been lost comes last.
            peer = min(waiting, key=lambda p: (lost[p], nearness(networks[p], placed), failed[p]))
            untried = [a for a in waiting.pop(peer) if a not in self._trying]
            addresses = [a for a in untried if (peer, _version(a)) not in held]
            wanted = peer in taken or is_place_wanted(networks[peer], placed)
            reserve = bool(addresses and places and wanted)
            if reserve and peer not in taken:
                placed.append(networks[peer])
            for address in addresses:
                unheard[_version(address)] -= 1
                if reserve or unheard[_version(address)] >= 0:
                    self._trying[address] = (now, reserve)
                    attempts.start_soon(self._alone, partial(self._use, address, reserve))

    def _is_useful(self, known: Sequence[RelayAddress]) -> bool:
        """Whether a place at a relay makes us reachable for anybody who does not reach us without."""
        return any(_version(address) not in self._sessions.open for address in known)

    async def _alone(self, task: Callable[[], Awaitable[None]]) -> None:
        with ends_alone(log, "the look for a relay"):
            await task()

    def _last_failed(self, addresses: Sequence[RelayAddress]) -> float:
        return max((self._failed.get(address, _NEVER)[0] for address in addresses), default=math.inf)

    def _is_lost(self, address: RelayAddress) -> bool:
        return self._failed.get(address, (0.0, 1))[1] == 0

    def _rested(self, address: RelayAddress, now: float) -> bool:
        at, times = self._failed.get(address, _NEVER)
        return not times or now - at >= RESERVED_AGAIN_S * 2 ** min(times - 1, DOUBLED)

    async def _use(self, address: RelayAddress, reserve: bool) -> None:
        """Hear how a relay sees us, and hold a place there if that is wanted."""
        before = self._sessions.observations
        try:
            session = await self._sessions.get(address)
            if reserve and self._may_hold(address.peer):
                await self._reserve(session)
        except ChannelClosed as error:
            log.debug("%s", error.message)
            self._note_failure(address)
        else:
            self._failed.pop(address, None)
            if session.reserved or self._sessions.observations != before:
                self._sessions.changed.set()
        finally:
            del self._trying[address]

    async def _reserve(self, session: RelaySession) -> None:
        peer = session.address.peer
        self._reserving[peer] = trio.current_time()
        try:
            await session.reserve(RESERVED_WITHIN_S)
        finally:
            self._reserving.pop(peer, None)

    def _may_hold(self, peer: PeerId) -> bool:
        """Whether a place there is still wanted, as some were tried beside others that were slow."""
        now = trio.current_time()
        held = {session.address.peer for session in self._sessions.all() if session.reserved}
        soon = {peer for peer, since in self._reserving.items() if now - since < SLOW_S}
        others = (held | soon) - {peer}
        return peer in held or is_place_wanted(self._networks([peer])[0], self._networks(others))

    def _networks(self, peers: Iterable[PeerId]) -> list[Networks]:
        """The networks of relays that we know, or have a session with."""
        sessions = self._sessions.all()
        return [
            networks_of((*self._known.get(p, ()), *(s.address for s in sessions if s.address.peer == p)))
            for p in peers
        ]

    def _note_failure(self, address: RelayAddress) -> None:
        times = self._failed.get(address, _NEVER)[1] + 1
        reached = any(session.address.peer == address.peer for session in self._sessions.all())
        if times < GIVEN_UP_AFTER or reached:
            _keep(self._failed, address, (trio.current_time(), times))
            return
        self._failed.pop(address, None)
        left = tuple(known for known in self._known.get(address.peer, ()) if known != address)
        if left:
            self._known[address.peer] = left
        else:
            self._known.pop(address.peer, None)
            _keep(self._asked, address.peer, trio.current_time(), ASKED_LIMIT)


def _hosts(own: Sequence[str]) -> list[str]:
    return [target[0] for a in own if (target := host_and_port(a)) is not None]


def _version(address: RelayAddress) -> IPVersion:
    return 6 if ":" in address.host else 4


def _keep(table: OrderedDict[_Item, _Value], peer: _Item, value: _Value, limit: int = KNOWN_LIMIT) -> None:
    """Note something of a peer or of a relay, and forget what was noted first where that is too much."""
    table[peer] = value
    table.move_to_end(peer)
    while len(table) > limit:
        table.popitem(last=False)

"""Our control connections to relays, opened when one is wanted, and what they tell of how we are seen."""

from __future__ import annotations

from collections.abc import Collection
from typing import NamedTuple

import trio

from shoal.errors import ChannelClosed
from shoal.keyed_locks import KeyedLocks
from shoal.net.addresses import (
    IPVersion,
    host_and_port,
    is_private,
    to_multiaddr,
    version_of,
    versions_of,
)
from shoal.net.carriers.direct import DirectCarrier
from shoal.net.reach.control import ControlLink
from shoal.net.reach.nat import Observation, add_observation, believed_address, best_kind, nat_kind
from shoal.net.reach.ports import end_for, from_inside, hold_port
from shoal.net.reach.relay_session import OnCall, RelayAddress, RelaySession
from shoal.types import NatKind, PeerId

SESSIONS_LIMIT = 32
OPEN_LIMIT = 4
IDLE_S = 45.0
"""A session that holds no place, and over which no call goes for so long, is closed."""
DIALLED_WITHIN_S = 5.0


class _Key(NamedTuple):
    """One session."""

    relay: PeerId
    version: IPVersion | None
    """By which the relay is dialled: one with an address of each has a session over each."""
    port: int
    """That it comes from, 0 for the direct carrier's."""


def _key(address: RelayAddress, port: int = 0) -> _Key:
    return _Key(address.peer, version_of(to_multiaddr(address.host, address.port)), port)


class RelaySessions:
    """One session for each relay and IP version. ``run`` must be running."""

    def __init__(self, carrier: DirectCarrier, on_call: OnCall) -> None:
        self.own: frozenset[str] = frozenset()
        """The addresses of our interfaces with the direct carrier's port, and those that are led to it."""
        self.forwarded: frozenset[str] = frozenset()
        """Those of them that are on no interface."""
        self.open = frozenset[IPVersion]()
        """The IP versions in which everybody can dial us, as far as we know."""
        self._carrier = carrier
        self._on_call = on_call
        self._sessions: dict[_Key, RelaySession] = {}
        self._dialling = KeyedLocks[_Key]()
        self._observations: tuple[Observation, ...] = ()
        self.changed = trio.Event()
        """Set when a session ends, and with it a place; and by whoever looks after places, to look again."""
        self._nursery: trio.Nursery | None = None

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Keep sessions until cancelled; then they are closed."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            task_status.started()
            while True:
                await trio.sleep(IDLE_S / 3)
                for session in self.all():
                    if not session.reserved and trio.current_time() - session.used_at > IDLE_S:
                        session.close()

    def all(self) -> list[RelaySession]:
        """The sessions that there are."""
        return list(self._sessions.values())

    def doubt(self) -> None:
        """Look whether the relays still answer, as some peer does not."""
        for session in self.all():
            session.doubt()

    @property
    def observations(self) -> tuple[Observation, ...]:
        return self._observations

    @property
    def nat(self) -> NatKind:
        """What kind of router we are behind, as far as it is known: in IPv4, if there is that."""
        return self.nat_in(6 if versions_of(self.own) == frozenset({6}) else 4)

    def nat_in(self, version: IPVersion) -> NatKind:
        """The same in one IP version."""
        if any(version_of(address) == version for address in self.open_addresses):
            return "none"
        kind = nat_kind(self.seen_in(version), self.own)
        # What changes no address and yet keeps strangers out lets in whom we dial, as a cone does.
        return "cone" if kind == "none" and version not in self.open else kind

    @property
    def open_addresses(self) -> tuple[str, ...]:
        """Public addresses of ours at which everybody can dial us, a few of them."""
        public = [a for a in sorted(self.own) if not is_private((host_and_port(a) or ("", 0))[0])]
        return tuple(a for a in public if version_of(a) in self.open)[:OPEN_LIMIT]

    def led_to_us(self, peer: PeerId, seen: str) -> str:
        """Where others dial a peer that has come to our port from ``seen``: ourselves not on this machine."""
        if peer != self._carrier.peer:
            return seen
        return next((a for a in sorted(self.forwarded) if version_of(a) == version_of(seen)), seen)

    def nat_among(self, versions: Collection[IPVersion]) -> NatKind:
        """The same for a peer that has these: "symmetric", as nobody is met, where we have none of them."""
        ours = versions_of(self.own) & frozenset(versions)
        known = [version for version in ours if self.seen_in(version)]
        return best_kind([self.nat_in(version) for version in known or ours])

    def seen_in(self, version: IPVersion) -> list[Observation]:
        """What observers said of our address in one IP version."""
        return [one for one in self._observations if version_of(one.seen) == version]

    @property
    def believed(self) -> str | None:
        """The public IPv4 address that our router gives us, once enough observers agree."""
        return believed_address(self.seen_in(4))

    def has(self, address: RelayAddress) -> bool:
        """Whether there is a session with a relay at this address."""
        session = self._sessions.get(_key(address))
        return session is not None and not session.closed.is_set()

    async def get(self, address: RelayAddress) -> RelaySession:
        """The session with a relay, which is opened if there is none.

        Raises:
            ChannelClosed: the relay does not answer.
        """
        key = _key(address)
        async with self._dialling.held(key):
            session = self._sessions.get(key)
            if session is None or session.closed.is_set():
                # To our own relay, for those who hold a place there, no port can dial itself.
                ours = address.peer == self._carrier.peer
                end = None if ours else end_for(self._carrier.ends, address.host)
                session = await self._open(address, end, key)
                if session.local is not None and host_and_port(session.seen) is not None:
                    word = Observation(session.address.host, session.seen)
                    self._observations = add_observation(self._observations, word)
            session.used_at = trio.current_time()
            return session

    async def get_fresh(self, address: RelayAddress) -> RelaySession:
        """Another session with a relay, from a port that no connection had before. Raises as :meth:`get`."""
        end = end_for(self._carrier.ends, address.host)
        if end is None:
            raise ChannelClosed("there is no port to be met at")
        # Held until the session has it.
        with await hold_port(end[0]) as held:
            local: tuple[str, int] = held.getsockname()[:2]
            return await self._open(address, local, _key(address, local[1]))

    async def _open(self, address: RelayAddress, local: tuple[str, int] | None, key: _Key) -> RelaySession:
        nursery = self._nursery
        if nursery is None or not self._make_room():
            raise ChannelClosed("no more relays are asked now")
        with trio.move_on_after(DIALLED_WITHIN_S):
            pipe = await self._carrier.dial_control(*self._dialled_at(address), address.peer, local)
            # The system may have given it another port, of which what the relay sees says nothing.
            own = local if local is not None and pipe.local_port == local[1] else None
            session = RelaySession(ControlLink(pipe), address, self._on_call, own)
            nursery.start_soon(self._run, session, key)
            try:
                await session.wait_welcome()
            except BaseException:
                if key.port:  # nobody else finds it, and it holds a port
                    session.close()
                raise
            return session
        raise ChannelClosed(f"the relay {address.peer} does not answer")

    def _dialled_at(self, address: RelayAddress) -> tuple[str, int]:
        """Where a relay is: we ourselves on this machine, as few routers lead back what comes from behind."""
        ours = address.peer == self._carrier.peer
        end = end_for(self._carrier.ends, address.host)
        if ours and end and to_multiaddr(address.host, address.port) in self.forwarded:
            return from_inside(end)
        return address.host, address.port

    def _make_room(self) -> bool:
        """Whether there is room for one more session, if need be that of the one least lately used."""
        if len(self._sessions) < SESSIONS_LIMIT:
            return True
        spare = [(session.used_at, key) for key, session in self._sessions.items() if session.spare]
        if not spare:
            return False
        # Now, and not when it has ended: others may want a place meanwhile.
        self._sessions.pop(min(spare)[1]).close()
        return True

    async def _run(self, session: RelaySession, key: _Key) -> None:
        self._sessions[key] = session
        try:
            await session.run()
        finally:
            if self._sessions.get(key) is session:
                del self._sessions[key]
            self.changed.set()

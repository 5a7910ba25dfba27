"""Our control connections to relays, opened when one is wanted, and what they tell of how we are seen."""

from __future__ import annotations

import trio

from shoal.errors import ChannelClosed
from shoal.net.addresses import host_and_port
from shoal.net.carriers.direct import DirectCarrier
from shoal.net.reach.control import ControlLink
from shoal.net.reach.nat import Observation, add_observation, believed_address, nat_kind
from shoal.net.reach.ports import hold_port
from shoal.net.reach.relay_session import OnCall, RelayAddress, RelaySession
from shoal.types import NatKind, PeerId

SESSIONS_LIMIT = 32
IDLE_S = 45.0
"""A session that holds no place, and over which no call goes for so long, is closed."""
DIALLED_WITHIN_S = 5.0


class RelaySessions:
    """One session for each relay. ``run`` must be running."""

    def __init__(self, carrier: DirectCarrier, on_call: OnCall) -> None:
        self.own: frozenset[str] = frozenset()
        """The addresses of our interfaces with the direct carrier's port."""
        self._carrier = carrier
        self._on_call = on_call
        self._sessions: dict[tuple[PeerId, int], RelaySession] = {}
        """By relay, and by the port that they come from, 0 for the direct carrier's."""
        self._dialling: dict[PeerId, trio.Lock] = {}
        self._observations: tuple[Observation, ...] = ()
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

    @property
    def observations(self) -> tuple[Observation, ...]:
        return self._observations

    @property
    def nat(self) -> NatKind:
        """What kind of router we are behind, as far as it is known."""
        return nat_kind(self._observations, self.own)

    @property
    def believed(self) -> str | None:
        """The public address that our router gives us, once enough observers agree."""
        return believed_address(self._observations)

    async def get(self, address: RelayAddress) -> RelaySession:
        """The session with a relay, which is opened if there is none.

        Raises:
            ChannelClosed: the relay does not answer.
        """
        lock = self._dialling.setdefault(address.peer, trio.Lock())
        try:
            async with lock:
                session = self._sessions.get((address.peer, 0))
                if session is None or session.closed.is_set():
                    session = await self._open(address, self._carrier.local, 0)
                    if session.local is not None and host_and_port(session.seen) is not None:
                        word = Observation(session.address.host, session.seen)
                        self._observations = add_observation(self._observations, word)
                session.used_at = trio.current_time()
                return session
        finally:
            # Kept while others wait for it: with a new lock, two would dial at once.
            if not lock.statistics().tasks_waiting and not lock.locked():
                self._dialling.pop(address.peer, None)

    async def get_fresh(self, address: RelayAddress) -> RelaySession:
        """Another session with a relay, from a port that no connection had before. Raises as :meth:`get`."""
        if self._carrier.local is None:
            raise ChannelClosed("there is no port to be met at")
        # Held until the session has it.
        with await hold_port(self._carrier.local[0]) as held:
            local: tuple[str, int] = held.getsockname()[:2]
            return await self._open(address, local, local[1])

    async def _open(self, address: RelayAddress, local: tuple[str, int] | None, key: int) -> RelaySession:
        nursery = self._nursery
        if nursery is None or not self._make_room():
            raise ChannelClosed("no more relays are asked now")
        with trio.move_on_after(DIALLED_WITHIN_S):
            pipe = await self._carrier.dial_control(address.host, address.port, address.peer, local)
            # The system may have given it another port, of which what the relay sees says nothing.
            own = local if local is not None and pipe.local_port == local[1] else None
            session = RelaySession(ControlLink(pipe), address, self._on_call, own)
            nursery.start_soon(self._run, session, key)
            await session.wait_welcome()
            return session
        raise ChannelClosed(f"the relay {address.peer} does not answer")

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

    async def _run(self, session: RelaySession, key: int) -> None:
        self._sessions[session.address.peer, key] = session
        try:
            await session.run()
        finally:
            if self._sessions.get((session.address.peer, key)) is session:
                del self._sessions[session.address.peer, key]

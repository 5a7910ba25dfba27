"""What a relay grants: places, calls and circuits, in bounds that nobody can pass. Pure: time is an
argument."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from shoal.errors import Busy, ChannelClosed
from shoal.types import PeerId


@dataclass(frozen=True, slots=True)
class RelayLimits:
    """What one relay bears. A circuit is two connections; their bytes are passed on, never kept."""

    sessions: int = 512
    """Control connections."""
    sessions_per_network: int = 64
    sessions_per_peer: int = 4
    reservations: int = 256
    calls_per_s: float = 32.0
    """Calls of all peers together, and ``calls_at_once`` after a rest, divided fairly."""
    calls_at_once: int = 128
    calls_open: int = 16
    """Calls of one peer that have no answer yet."""
    calls_waiting: int = 32
    """The same to one peer: half of what may wait for it, so that no crowd makes it seem not to read."""
    calls_waiting_per_network: int = 16
    """Of them, those that come from one network."""
    circuits: int = 128
    circuits_per_peer: int = 16
    """Whether it called or was called."""
    circuits_per_network: int = 32
    """The same of all peers of one network: keys cost nothing."""
    join_s: float = 10.0
    """Within which both have to come."""
    idle_s: float = 60.0
    """A circuit over which nothing goes ends: a channel pings each second."""
    ending_s: float = 5.0
    """The same once one end has ended its side."""
    circuit_s: float = 12 * 3600.0
    circuit_bytes: int = 64 << 30
    """Bytes both ways of one circuit."""


@dataclass(frozen=True, slots=True)
class Circuit:
    """Two peers that a relay joins."""

    token: bytes
    caller: PeerId
    called: PeerId
    networks: frozenset[str]
    granted_at: float


class Circuits:
    """The circuits of one relay: granted, and then joined or forgotten."""

    def __init__(self, limits: RelayLimits) -> None:
        self._limits = limits
        self._granted: dict[bytes, Circuit] = {}
        """Both ends have not come yet."""
        self._joined: dict[bytes, Circuit] = {}

    def __len__(self) -> int:
        return len(self._granted) + len(self._joined)

    def grant(
        self,
        token: bytes,
        caller: PeerId,
        called: PeerId,
        now: float,
        networks: frozenset[str] = frozenset(),
    ) -> None:
        """Allow two peers to come with ``token``.

        Args:
            networks: of the two.

        Raises:
            Busy: one of them, or its network, has too many circuits, or the relay has.
            ChannelClosed: the token is another circuit's.
        """
        self._forget(now)
        if token in self._granted or token in self._joined:
            raise ChannelClosed("a circuit with this token exists")
        if len(self) >= self._limits.circuits:
            raise Busy("the relay has no circuit left", retry_after_s=self._limits.join_s)
        shares = Counter(peer for one in self._all() for peer in (one.caller, one.called))
        if max(shares[caller], shares[called]) >= self._limits.circuits_per_peer:
            raise Busy("this peer has too many circuits here", retry_after_s=self._limits.join_s)
        for network in networks:
            if sum(network in one.networks for one in self._all()) >= self._limits.circuits_per_network:
                raise Busy("this network has too many circuits here", retry_after_s=self._limits.join_s)
        self._granted[token] = Circuit(token, caller, called, networks, now)

    def granted(self, token: bytes, now: float) -> bool:
        """Whether somebody who comes with ``token`` is awaited."""
        self._forget(now)
        return token in self._granted

    def join(self, token: bytes, now: float) -> bool:
        """Both have come; whether in time. Whoever comes later with this token is nobody."""
        self._forget(now)
        circuit = self._granted.pop(token, None)
        if circuit is not None:
            self._joined[token] = circuit
        return circuit is not None

    def withdraw(self, token: bytes) -> None:
        """Await nobody with ``token`` any more; a circuit that is joined stays."""
        self._granted.pop(token, None)

    def end(self, token: bytes) -> None:
        """Forget a circuit, joined or not."""
        self._granted.pop(token, None)
        self._joined.pop(token, None)

    def _all(self) -> list[Circuit]:
        return [*self._granted.values(), *self._joined.values()]

    def _forget(self, now: float) -> None:
        late = [t for t, one in self._granted.items() if now - one.granted_at > self._limits.join_s]
        for token in late:
            del self._granted[token]

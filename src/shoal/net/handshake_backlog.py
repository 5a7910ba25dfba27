"""Connections that strangers have begun and that have not shown a key yet, in bounds that nobody can fill.

Anyone can open sockets, so neither their number nor their age may keep others out:

- A connection that has not sent its first message costs a socket. Of those that wait, the oldest of the
  network that has most makes room for the newest.
- A handshake costs arithmetic. They begin at a bounded rate: networks take turns, and of one network the
  newest goes first, since whoever has just come is there, and silence is old.
- Once ``HANDSHAKES`` are under way, the oldest ends when another begins. At ``RATE`` handshakes a second each
  has ``HANDSHAKES / RATE`` seconds, many round trips of the internet, however many want one.

A network is a /24 of IPv4 or a /56 of IPv6: what one subscriber or one rented machine has. Pure: time is an
argument, connections are any hashable things.
"""

from __future__ import annotations

import ipaddress
from collections import OrderedDict, deque
from collections.abc import Hashable
from typing import Generic, TypeVar

WAITING = 512
"""Connections that have not sent their first message."""
HANDSHAKES = 512
"""Handshakes under way."""
RATE = 150.0
"""Handshakes that may begin in a second."""
BURST = 64
"""Handshakes that may begin at once, after a quiet time."""

_Conn = TypeVar("_Conn", bound=Hashable)


def network_of(host: str) -> str:
    """The network that an address belongs to; what is no address is a network of its own."""
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return host
    # A listener on :: sees every IPv4 address as one of ::ffff:0:0/96, which would all be one network.
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    return str(ipaddress.ip_network((address, 24 if address.version == 4 else 56), strict=False))


class HandshakeBacklog(Generic[_Conn]):
    """Half-open connections of one listener."""

    def __init__(
        self, *, waiting: int = WAITING, handshakes: int = HANDSHAKES, rate: float = RATE, burst: int = BURST
    ) -> None:
        self._waiting_limit = waiting
        self._handshakes_limit = handshakes
        self._rate = rate
        self._burst = burst
        self._allowed = float(burst)  # handshakes that may begin now
        self._at = 0.0  # when that was so
        self._waiting: dict[str, OrderedDict[_Conn, None]] = {}
        """Who waits for its first message or for its turn, by network, the oldest first."""
        self._turns: OrderedDict[str, deque[_Conn]] = OrderedDict()
        """Who has sent its first message, by network. The network that began last comes last."""
        self._begun: OrderedDict[_Conn, None] = OrderedDict()

    def arrive(self, conn: _Conn, host: str) -> _Conn | None:
        """Take in a connection that has said nothing yet; returns the one that makes room for it, if any."""
        self._waiting.setdefault(network_of(host), OrderedDict())[conn] = None
        if sum(map(len, self._waiting.values())) <= self._waiting_limit:
            return None
        most = max(self._waiting.values(), key=len)
        evicted = next(iter(most))
        self.leave(evicted)
        return evicted

    def speak(self, conn: _Conn, host: str) -> None:
        """Its first message has come: it may begin when its turn comes."""
        network = network_of(host)
        if conn in self._waiting.get(network, ()):
            self._turns.setdefault(network, deque()).append(conn)

    def begin(self, now: float) -> tuple[_Conn | None, _Conn | None]:
        """Who may begin its handshake now, and whose ends for it; ``None`` where there is nobody."""
        self._allowed = min(self._burst, self._allowed + (now - self._at) * self._rate)
        self._at = now
        if self._allowed < 1 or not self._turns:
            return None, None
        self._allowed -= 1
        network, turns = next(iter(self._turns.items()))
        conn = turns.pop()
        self._turns.move_to_end(network)
        if not turns:
            del self._turns[network]
        self._forget(network, conn)
        ended = next(iter(self._begun)) if len(self._begun) >= self._handshakes_limit else None
        if ended is not None:
            del self._begun[ended]
        self._begun[conn] = None
        return conn, ended

    def next_s(self, now: float) -> float | None:
        """Seconds until somebody may begin; ``None`` while nobody wants to."""
        if not self._turns:
            return None
        allowed = self._allowed + (now - self._at) * self._rate
        return max(0.0, (1 - allowed) / self._rate)

    def leave(self, conn: _Conn) -> None:
        """It has shown its key, or is gone."""
        self._begun.pop(conn, None)
        for network in list(self._waiting):
            if conn in self._waiting[network]:
                self._forget(network, conn)

    def _forget(self, network: str, conn: _Conn) -> None:
        del self._waiting[network][conn]
        if not self._waiting[network]:
            del self._waiting[network]
        if conn in self._turns.get(network, ()):
            self._turns[network].remove(conn)
            if not self._turns[network]:
                del self._turns[network]

    def __len__(self) -> int:
        return len(self._begun) + sum(map(len, self._waiting.values()))

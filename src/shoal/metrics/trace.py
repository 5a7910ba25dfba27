"""Where the time of recent steps went, hop by hop; the newest are kept.

A client sees the whole ring: from sending a step until its result, how much of that each hop computed and
let it wait by the hop's own clock, and the rest, which is the network's. The rest is measured for the whole
ring; no two clocks are compared, so each of the N+1 ways of N hops is shown an equal part of it. A node sees
its own hop alone.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

STEPS_KEPT = 256
REROUTES_KEPT = 32
SESSION_DIGITS = 8
"""Hex digits of a session's id that are shown: enough to tell sessions apart, too few to name one."""


@dataclass(frozen=True, slots=True)
class HopTrace:
    """One step at one hop."""

    peer: str
    span: str
    compute_ms: float
    waiting_ms: float


@dataclass(frozen=True, slots=True)
class StepTrace:
    """One step, as whoever traces it saw it."""

    at: float
    """Seconds since the epoch when it was over."""
    session: str
    number: int
    position: int
    tokens: int
    total_ms: float
    network_ms: float | None
    """On all the ways of the ring together; ``None`` at a node, which does not see them."""
    hops: tuple[HopTrace, ...]

    @property
    def way_ms(self) -> float:
        """An equal part of the network's time for one of the N+1 ways."""
        return (self.network_ms or 0.0) / (len(self.hops) + 1)


@dataclass(frozen=True, slots=True)
class RerouteTrace:
    """A loss that a session survived."""

    at: float
    """Seconds since the epoch."""
    session: str
    gap_s: float
    lost: tuple[str, ...]
    way: str
    """``resend``: the other hops kept their KV; ``replay``: all was computed again."""


class Trace:
    """The newest steps and re-routes of one node or client. Any thread may add to it."""

    def __init__(self) -> None:
        self._steps = deque[Callable[[], StepTrace]](maxlen=STEPS_KEPT)
        self._reroutes = deque[RerouteTrace](maxlen=REROUTES_KEPT)

    def step(self, make: Callable[[], StepTrace]) -> None:
        """Keep a step, which is made when somebody looks at it; the oldest makes room."""
        self._steps.append(make)

    def reroute(self, reroute: RerouteTrace) -> None:
        """Keep a re-route; the oldest makes room."""
        self._reroutes.append(reroute)

    @property
    def steps(self) -> list[StepTrace]:
        """The steps that are kept, oldest first."""
        return [make() for make in self._steps.copy()]

    @property
    def reroutes(self) -> list[RerouteTrace]:
        """The re-routes that are kept, oldest first."""
        return list(self._reroutes.copy())


def short_session(session: bytes) -> str:
    """A session's id as a trace or a log names it."""
    return session.hex()[:SESSION_DIGITS]


def ring_step(
    at: float,
    session: bytes,
    number: int,
    position: int,
    tokens: int,
    total_s: float,
    hops: Sequence[HopTrace],
) -> StepTrace:
    """A step of a whole ring: what the hops do not account for of ``total_s`` seconds is the network's."""
    total_ms = total_s * 1e3
    inside = sum(hop.compute_ms + hop.waiting_ms for hop in hops)
    network_ms = round(max(0.0, total_ms - inside), 3)
    return StepTrace(
        at, short_session(session), number, position, tokens, round(total_ms, 3), network_ms, tuple(hops)
    )


def hop_step(at: float, session: bytes, number: int, position: int, tokens: int, hop: HopTrace) -> StepTrace:
    """A step as the one hop that computed it sees it."""
    total_ms = round(hop.compute_ms + hop.waiting_ms, 3)
    return StepTrace(at, short_session(session), number, position, tokens, total_ms, None, (hop,))

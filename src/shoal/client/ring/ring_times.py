"""How long steps take round a ring, whole and at each hop, and how long the next one should."""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import partial

from shoal.client.ring.hop import RouteHop
from shoal.client.ring.places import WAY_BYTES_S, Places
from shoal.metrics.trace import HopTrace, StepTrace, Trace, ring_step
from shoal.routing.prices import HOP_S
from shoal.routing.replace import PREFILL
from shoal.types import SessionId
from shoal.wire.messages import HopTime
from shoal.wire.session import Issued

ROW_BYTES = 2
"""Of a hidden state's element, mostly."""


class RingTimes:
    """The times of one session's steps. Times given to it are seconds of one clock that only runs forwards.

    Args:
        width: elements of a token's hidden state.
        in_flight: steps that may be on their way at once.
    """

    def __init__(self, places: Places, session: SessionId, trace: Trace, width: int, in_flight: int) -> None:
        self._places = places
        self._session = session
        self._trace = trace
        self._width = width
        self._sent_at = [0.0] * in_flight  # by a step's number modulo these: no two in flight share one

    def sent(self, step: Issued, now: float) -> None:
        """A step has been sent, from any thread."""
        self._sent_at[step.number % len(self._sent_at)] = now

    def returned(self, step: Issued, times: Sequence[HopTime], now: float) -> float:
        """A step has come back: trace it, and note how fast the hops decode. Returns how long it took.

        Args:
            times: what the hops say of it.
        """
        took_s = now - self._sent_at[step.number % len(self._sent_at)]
        if step.tokens == 1 and step.alone:  # else it waited for others of its own session
            self._note_pace(times, took_s)
        self._trace.step(
            partial(_traced, time.time(), self._session, step, took_s, self._places.route, times)
        )
        return took_s

    def expected_s(self, step: Issued | None) -> float | None:
        """How long a step should take; ``None`` where nobody has measured any, or there is no step."""
        promised = [hop.pace.promised_s for hop in self._places.hops]
        if step is None or not all(promised):
            return None
        ways = sum(hop.channel.rtt_s or 0.0 for hop in self._places.hops if hop.channel)
        rates = [hop.channel.bytes_s or WAY_BYTES_S for hop in self._places.hops if hop.channel]
        sent_s = len(promised) * step.tokens * self._width * ROW_BYTES / min([WAY_BYTES_S, *rates])
        return ways + sent_s + sum(promised) * (1 + step.tokens / PREFILL)

    def _note_pace(self, times: Sequence[HopTime], took_s: float) -> None:
        """How long a decode step took at each hop: what it says, and a share of what nobody explains."""
        hops = self._places.hops
        told = [0.0] * len(hops)
        for time_at in times:
            if time_at.hop < len(hops):
                told[time_at.hop] += (time_at.compute_us + time_at.waiting_us) / 1e6
        # From hop to hop it is hardly further than through us.
        ways = sum((hop.channel.rtt_s or 0.0) + HOP_S for hop in hops if hop.channel)
        unexplained = max(0.0, took_s - sum(told) - ways) / len(hops)
        for hop, told_s in zip(hops, told, strict=True):
            hop.pace.note(told_s + unexplained)


def _traced(
    at: float,
    session: SessionId,
    step: Issued,
    took_s: float,
    route: Sequence[RouteHop],
    times: Sequence[HopTime],
) -> StepTrace:
    """A step with what each hop says of it, and who that is."""
    known = [(route[time.hop], time) for time in times if time.hop < len(route)]
    hops = [
        HopTrace(hop.address.peer, str(hop.span), time.compute_us / 1e3, time.waiting_us / 1e3)
        for hop, time in known
    ]
    return ring_step(at, session, step.number, step.position, step.tokens, took_s, hops)

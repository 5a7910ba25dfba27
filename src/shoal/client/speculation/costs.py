"""What steps of one session cost, smoothed, by the times that hops tell. Pure: the caller brings them."""

from __future__ import annotations

from collections.abc import Sequence

from shoal.client.speculation.controller import Snapshot
from shoal.wire.messages import HopTime

SMOOTH = 0.2
"""What a new figure counts for."""
ROW_SHARE = 0.2
"""What a row more costs, in steps of one row, until it was measured."""


class StepCosts:
    """Measured at the steps of one session, of one row and of several. Seconds."""

    def __init__(self) -> None:
        self._one: dict[int, float] = {}  # computing one row, by hop
        self._more: dict[int, float] = {}  # computing one row more, by hop
        self._waiting_s = 0.0
        self._ways_s: float | None = None
        self._own_s = 0.001

    @property
    def known(self) -> bool:
        """Whether a step of one row was measured."""
        return self._ways_s is not None and bool(self._one)

    def note_step(self, rows: int, took_s: float, times: Sequence[HopTime], *, alone: bool) -> None:
        """A step came back.

        Args:
            alone: no other step of the session was under way: what it waited for at the hops were others.
        """
        inside = sum(time.compute_us + time.waiting_us for time in times) / 1e6
        self._ways_s = _smooth(self._ways_s, max(0.0, took_s - inside))
        for time in times:
            compute_s = time.compute_us / 1e6
            if rows == 1:
                self._one[time.hop] = _smooth(self._one.get(time.hop), compute_s)
            elif time.hop in self._one:
                more = max(0.0, compute_s - self._one[time.hop]) / (rows - 1)
                self._more[time.hop] = _smooth(self._more.get(time.hop), more)
        if alone:
            self._waiting_s = _smooth(self._waiting_s, sum(time.waiting_us for time in times) / 1e6)

    def note_own(self, own_s: float) -> None:
        """What a token took on this machine, beside the step's way round the ring."""
        self._own_s = _smooth(self._own_s, max(0.0, own_s))

    def snapshot(self, acceptance: float, draft_s: float, rows: int) -> Snapshot:
        """For a decision. Something must be known."""
        more = [self._more.get(hop, ROW_SHARE * one_s) for hop, one_s in self._one.items()]
        return Snapshot(
            acceptance=acceptance,
            ways_s=self._ways_s or 0.0,
            step_s=sum(self._one.values()),
            slowest_s=max(self._one.values(), default=0.0),
            row_s=sum(more),
            waiting_s=self._waiting_s,
            own_s=self._own_s,
            draft_s=draft_s,
            rows=rows,
        )


def _smooth(old: float | None, new: float) -> float:
    return new if old is None else (1 - SMOOTH) * old + SMOOTH * new
